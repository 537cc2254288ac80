//! What those share who ask one region for ports at the same time: reads of its Service, and writes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex as Turn, oneshot};

use crate::error::{Kind, Result};
use crate::model::ports::{self, Ports};
use crate::sharing::Sharing;

/// What somebody wants of the Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Want {
    /// What the port is called.
    pub name: String,
    /// Which ports.
    pub ports: Wanted,
}

/// Which ports somebody wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// Those that are there under the name, or free ones.
    Any,
    /// This node port.
    Node(u16),
    /// These, which were there before.
    Back(Ports),
}

/// Where the clusters of one run ask a region for ports. Each write of the Service makes every node of the proxy cluster write its rules
/// anew, for as long as there are many; so one writes for all that wait.
#[derive(Debug, Default)]
pub struct Desk {
    service: Sharing<Option<Value>>,
    waiting: Mutex<Vec<Request>>,
    turn: Turn<()>,
    /// Node ports that nobody gets who didn't ask for them.
    kept: BTreeSet<u16>,
    /// What was given by writes that were only tried: the Service does not have it.
    rehearsed: Mutex<Vec<(String, Ports)>>,
}

#[derive(Debug)]
struct Request {
    want: Want,
    answer: oneshot::Sender<Result<Ports>>,
}

impl Desk {
    /// A desk where nobody gets these node ports who didn't ask for them.
    pub fn keeping(kept: BTreeSet<u16>) -> Self {
        Self { kept, ..Self::default() }
    }

    /// The node ports that nobody gets who didn't ask for them.
    pub fn kept(&self) -> &BTreeSet<u16> {
        &self.kept
    }

    /// Notes what was given by a write that was only tried.
    pub fn rehearsed<'a>(&self, given: impl Iterator<Item = (&'a str, Ports)>) {
        let mut rehearsed = self.rehearsed.lock().unwrap_or_else(PoisonError::into_inner);
        rehearsed.extend(given.map(|(name, ports)| (name.to_owned(), ports)));
    }

    /// The Service's entries, with what was given by writes that were only tried.
    pub fn with_rehearsed(&self, entries: &[Value]) -> Vec<Value> {
        let rehearsed = self.rehearsed.lock().unwrap_or_else(PoisonError::into_inner);
        rehearsed.iter().fold(entries.to_vec(), |entries, (name, given)| ports::with(&entries, name, *given))
    }

    /// The Service, by `read` unless somebody else has read it meanwhile.
    pub async fn seen(&self, read: impl Future<Output = Result<Option<Value>>>) -> Result<Arc<Option<Value>>> {
        self.service.get(read).await
    }

    /// Gives somebody what he wants, by `write`, which is told what all want who wait by then and gives each his ports, in their order.
    pub async fn ask(&self, want: Want, write: impl AsyncFn(&[Want]) -> Result<Vec<Result<Ports>>>) -> Result<Ports> {
        let mut answered = self.queue(want.clone());
        let _turn = self.turn.lock().await;
        loop {
            match answered.try_recv() {
                Ok(ports) => return ports,
                Err(TryRecvError::Empty) => {}
                // Whoever wrote for this one was ended in the middle.
                Err(TryRecvError::Closed) => answered = self.queue(want.clone()),
            }
            let requests = std::mem::take(&mut *self.waiting());
            let (wants, answers): (Vec<_>, Vec<_>) = requests
                .into_iter()
                .filter(|request| !request.answer.is_closed())
                .map(|request| (request.want, request.answer))
                .unzip();
            let given = match write(&wants).await {
                // What one wants, and can't have, made Kubernetes refuse the whole.
                Err(failure) if failure.kind == Kind::NodePortTaken && wants.len() > 1 => {
                    let mut each = Vec::new();
                    for want in &wants {
                        each.push(write(std::slice::from_ref(want)).await.and_then(|mut given| given.remove(0)));
                    }
                    each
                }
                Err(failure) => vec![Err(failure); wants.len()],
                Ok(given) => given,
            };
            for (answer, ports) in answers.into_iter().zip(given) {
                // Who waits no more takes back what he may have got.
                let _ = answer.send(ports);
            }
        }
    }

    fn queue(&self, want: Want) -> oneshot::Receiver<Result<Ports>> {
        let (answer, answered) = oneshot::channel();
        self.waiting().push(Request { want, answer });
        answered
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Request>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::error::Failure;

    fn want(name: &str) -> Want {
        Want { name: name.into(), ports: Wanted::Any }
    }

    fn ports(node: u16) -> Ports {
        Ports { listen: node - 22000, node }
    }

    #[tokio::test(start_paused = true)]
    async fn one_writes_for_all_that_wait() {
        let (desk, writes) = (Desk::default(), RefCell::new(Vec::new()));
        let write = async |wants: &[Want]| {
            writes.borrow_mut().push(wants.len());
            sleep(Duration::from_secs(1)).await;
            let number = |want: &Want| Ok(ports(want.name.parse().unwrap()));
            Ok(wants.iter().map(number).collect())
        };
        let given = join_all((30000..30100).map(|node| {
            let (desk, write) = (&desk, &write);
            async move {
                sleep(Duration::from_millis(if node == 30000 { 0 } else { 100 })).await;
                desk.ask(want(&node.to_string()), write).await.unwrap().node
            }
        }))
        .await;
        assert_eq!(given, (30000..30100).collect::<Vec<u16>>(), "each has its own");
        assert_eq!(*writes.borrow(), [1, 99]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_written_for_by_one_that_ends_writes_himself_and_who_ends_is_not_written_for() {
        let (desk, writes) = (Desk::default(), RefCell::new(Vec::new()));
        let write = async |wants: &[Want]| {
            writes.borrow_mut().push(wants.iter().map(|want| want.name.clone()).collect::<Vec<_>>());
            sleep(Duration::from_secs(10)).await;
            Ok(wants.iter().map(|_| Ok(ports(30000))).collect())
        };
        let ask = |name: &'static str, patience: u64| {
            let (desk, write) = (&desk, &write);
            async move { timeout(Duration::from_secs(patience), desk.ask(want(name), write)).await.is_ok() }
        };
        // `a` writes for itself; then `b` for three, until it is ended; `d` is ended while it waits for that.
        let done = futures::join!(ask("a", 100), async {
            sleep(Duration::from_secs(1)).await;
            futures::join!(ask("b", 14), ask("c", 100), ask("d", 14))
        });
        assert_eq!(done, (true, (false, true, false)));
        assert_eq!(*writes.borrow(), [vec!["a"], vec!["b", "c", "d"], vec!["c"]]);
    }

    #[tokio::test]
    async fn what_one_can_t_have_keeps_it_from_no_other_and_a_region_that_fails_is_asked_once() {
        for (kind, asked) in [(Kind::NodePortTaken, 3), (Kind::RegionUnreachable, 1)] {
            let (desk, writes) = (Desk::default(), Cell::new(0));
            let write = async |wants: &[Want]| {
                tokio::task::yield_now().await;
                writes.set(writes.get() + 1);
                if wants.iter().any(|want| want.name == "bad") {
                    return Err(Failure::new(kind, "no", "no"));
                }
                Ok(wants.iter().map(|_| Ok(ports(30000))).collect())
            };
            let waiting = desk.queue(want("good"));
            let bad = desk.ask(want("bad"), &write).await;
            let good = waiting.await.unwrap();
            assert_eq!((bad.unwrap_err().kind, good.is_ok(), writes.get()), (kind, kind == Kind::NodePortTaken, asked));
        }
    }
}
