//! Answers that those share who ask for the same at about the same time.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::Result;

/// The last answer to a question that many ask. Whoever asks gets one that was not asked for before: as fresh as if nobody else had, for
/// fewer requests.
#[derive(Debug)]
pub struct Sharing<T>(Mutex<Option<(Instant, Result<Arc<T>>)>>);

impl<T> Default for Sharing<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Sharing<T> {
    /// The answer, by `ask` unless somebody else has asked meanwhile. A failure is one, too: who waited for it need not wait for another.
    pub async fn get(&self, ask: impl Future<Output = Result<T>>) -> Result<Arc<T>> {
        let came = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((asked, answer)) = &*last
            && *asked >= came
        {
            return answer.clone();
        }
        let asked = Instant::now();
        let answer = ask.await.map(Arc::new);
        *last = Some((asked, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::time::sleep;

    use super::*;
    use crate::error::{Failure, Kind};

    #[tokio::test(start_paused = true)]
    async fn those_who_come_while_one_asks_share_the_next_answer() {
        let (sharing, asked) = (Sharing::default(), Cell::new(0));
        let ask = || async {
            asked.set(asked.get() + 1);
            let number = asked.get();
            sleep(Duration::from_secs(1)).await;
            Ok(number)
        };
        let one = |after: u64| {
            let (sharing, ask) = (&sharing, &ask);
            async move {
                sleep(Duration::from_millis(after)).await;
                *sharing.get(ask()).await.unwrap()
            }
        };
        let got = join_all([one(0), one(100), one(200), one(900), one(2500)]).await;
        assert_eq!(got, [1, 2, 2, 2, 3], "the first answer is older than the others' questions");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_that_wait_for_what_does_not_answer_wait_for_it_twice_at_most() {
        let sharing = Sharing::<()>::default();
        let ask = || async {
            sleep(Duration::from_secs(20)).await;
            Err(Failure::new(Kind::RegionUnreachable, "no answer", "wait"))
        };
        let start = Instant::now();
        let got = join_all((0..100).map(|_| sharing.get(ask()))).await;
        assert!(got.iter().all(Result::is_err));
        assert!(start.elapsed() < Duration::from_secs(41), "{:?}", start.elapsed());
    }
}
