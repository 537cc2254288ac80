//! Waiting for conditions, always with a bound.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(150);

/// Waits until `probe` succeeds, at most for `bound`. A probe's error is why the condition doesn't hold yet.
///
/// # Errors
/// When the bound is reached: what was waited for, and the last probe's error.
pub fn until<T>(what: &str, bound: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= bound => {
                return Err(error.context(format!("{what}: not within {} s", bound.as_secs())));
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

/// Waits until `holds` is true, at most for `bound`.
///
/// # Errors
/// When the bound is reached.
pub fn until_true(what: &str, bound: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    until(what, bound, || if holds() { Ok(()) } else { Err(anyhow!("still not so")) })
}

/// Runs every job in a thread of its own and gives the first failure, after all have ended.
pub fn all<'a, J>(jobs: impl IntoIterator<Item = J>) -> Result<()>
where
    J: FnOnce() -> Result<()> + Send + 'a,
{
    thread::scope(|scope| {
        let threads: Vec<_> = jobs.into_iter().map(|job| scope.spawn(job)).collect();
        let results: Vec<Result<()>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the lab panicked"))))
            .collect();
        results.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut left = 2;
        let value = until("x", Duration::from_secs(5), || {
            left -= 1;
            if left == 0 { Ok(7) } else { Err(anyhow!("no")) }
        });
        assert_eq!(value.unwrap(), 7);
    }

    #[test]
    fn the_bound_ends_it_with_the_last_reason() {
        let error = until::<()>("the hub", Duration::ZERO, || Err(anyhow!("refused"))).unwrap_err();
        assert_eq!(format!("{error:#}"), "the hub: not within 0 s: refused");
    }

    #[test]
    fn the_first_failure_of_several_jobs_is_told() {
        let job = |ok: bool| move || if ok { Ok(()) } else { Err(anyhow!("no")) };
        assert!(all([job(true), job(true)]).is_ok());
        assert_eq!(all([job(true), job(false)]).unwrap_err().to_string(), "no");
    }
}
