//! Every client of this program is made here. In a build with the feature `faults`, for tests of death in the middle, each write is
//! recorded, and the process dies before or after the one it is told: see `docs/testing.md`.

use kube::{Client, Config};

/// A client for an API server.
#[cfg(not(feature = "faults"))]
pub fn client(config: Config) -> kube::Result<Client> {
    Client::try_from(config)
}

/// A client for an API server, whose writes are kill points.
#[cfg(feature = "faults")]
pub fn client(config: Config) -> kube::Result<Client> {
    Ok(kube::client::ClientBuilder::try_from(config)?.with_layer(&faults::WritesLayer).build())
}

#[cfg(feature = "faults")]
pub use faults::KillPoint;

#[cfg(feature = "faults")]
mod faults {
    use std::collections::BTreeMap;
    use std::io::Write as _;
    use std::sync::{Mutex, PoisonError};
    use std::task::{Context, Poll};

    use futures::future::BoxFuture;
    use http::{Method, Request};
    use kube::client::Body;
    use nix::sys::signal::{Signal, raise};
    use tower::{Layer, Service};

    /// A file to which the name of every kill point is appended.
    const RECORD: &str = "XREGION_RECORD_WRITES";
    /// The kill point to die at: `before NAME` or `after NAME`.
    const DIE: &str = "XREGION_DIE";

    static SEEN: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

    /// A write, or a child process that writes.
    pub struct KillPoint(String);

    impl KillPoint {
        /// Comes to a point; dies there if it is the one to die before.
        pub fn reach(what: &str) -> Self {
            let count = {
                let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
                let count = seen.entry(what.to_owned()).or_default();
                *count += 1;
                *count
            };
            let name = format!("{what} #{count}");
            if let Some(path) = std::env::var_os(RECORD) {
                let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
                let _ = file.and_then(|mut file| writeln!(file, "{name}"));
            }
            let point = Self(name);
            point.die("before");
            point
        }

        /// Leaves it; dies if it is the one to die after.
        pub fn pass(&self) {
            self.die("after");
        }

        fn die(&self, when: &str) {
            if std::env::var(DIE).is_ok_and(|at| at == format!("{when} {}", self.0)) {
                let _ = raise(Signal::SIGKILL);
            }
        }
    }

    pub struct WritesLayer;

    impl<S> Layer<S> for WritesLayer {
        type Service = Writes<S>;

        fn layer(&self, inner: S) -> Writes<S> {
            Writes(inner)
        }
    }

    #[derive(Clone)]
    pub struct Writes<S>(S);

    impl<S> Service<Request<Body>> for Writes<S>
    where
        S: Service<Request<Body>>,
        S::Future: Send + 'static,
        S::Response: 'static,
        S::Error: 'static,
    {
        type Response = S::Response;
        type Error = S::Error;
        type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

        fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
            self.0.poll_ready(context)
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            if request.method() == Method::GET {
                return Box::pin(self.0.call(request));
            }
            let point = KillPoint::reach(&format!("{} {}", request.method(), request.uri().path()));
            let answer = self.0.call(request);
            Box::pin(async move {
                let answer = answer.await;
                point.pass();
                answer
            })
        }
    }
}
