//! Whether the proxy is alive and ready: this proxy's own state, never that of an upstream, or one dead cluster would take a region down.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest a turn of the agent's loop may take: a reload that does not come to an end takes half of this.
const TURN: Duration = Duration::from_secs(60);

/// What the probes ask for.
#[derive(Clone, Debug)]
pub(super) struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    turned: Instant,
    ready: bool,
}

impl Health {
    /// Alive and not ready.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { turned: Instant::now(), ready: false })))
    }

    /// The agent's loop turns.
    pub fn turn(&self) {
        self.change(|state| state.turned = Instant::now());
    }

    /// Whether the proxy wants connections.
    pub fn set_ready(&self, ready: bool) {
        self.change(|state| state.ready = ready);
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why the agent is not alive, if it is not.
    pub fn hangs(&self) -> Option<&'static str> {
        let turns = self.change(|state| state.turned.elapsed() < TURN);
        (!turns).then_some("the agent hangs\n")
    }

    /// Why it is not ready, if it is not.
    pub fn not_ready(&self) -> Option<&'static str> {
        let ready = self.change(|state| state.ready);
        (!ready).then_some("the routes are not applied yet, or no more\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_while_it_turns_and_ready_when_it_says_so() {
        let health = Health::new();
        assert!(health.hangs().is_none() && health.not_ready().is_some());
        health.set_ready(true);
        assert!(health.not_ready().is_none());
        health.change(|state| state.turned = Instant::now().checked_sub(TURN).unwrap());
        assert!(health.hangs().is_some() && health.not_ready().is_none());
        health.turn();
        assert!(health.hangs().is_none());
    }
}
