//! Whether a process is alive and ready: its own state, never that of a cluster it serves, or one dead cluster would take a region down.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest a turn of its loop may take: an agent's reload that does not come to an end takes half of this.
const TURN: Duration = Duration::from_secs(60);

/// What the probes ask for.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    turned: Instant,
    ready: bool,
    /// Why it is not, when it is not.
    lacks: &'static str,
}

impl Health {
    /// Alive and not ready; `lacks` is why it is not, whenever it is not.
    pub fn new(lacks: &'static str) -> Self {
        Self(Arc::new(Mutex::new(State { turned: Instant::now(), ready: false, lacks })))
    }

    /// The loop turns.
    pub fn turn(&self) {
        self.change(|state| state.turned = Instant::now());
    }

    /// Whether it is ready.
    pub fn set_ready(&self, ready: bool) {
        self.change(|state| state.ready = ready);
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why it is not alive, if it is not.
    pub fn hangs(&self) -> Option<&'static str> {
        let turns = self.change(|state| state.turned.elapsed() < TURN);
        (!turns).then_some("it hangs\n")
    }

    /// Why it is not ready, if it is not.
    pub fn not_ready(&self) -> Option<&'static str> {
        self.change(|state| (!state.ready).then_some(state.lacks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_while_it_turns_and_ready_when_it_says_so() {
        let health = Health::new("not yet");
        assert!(health.hangs().is_none() && health.not_ready().is_some());
        health.set_ready(true);
        assert!(health.not_ready().is_none());
        health.change(|state| state.turned = Instant::now().checked_sub(TURN).unwrap());
        assert!(health.hangs().is_some() && health.not_ready().is_none());
        health.turn();
        assert!(health.hangs().is_none());
    }
}
