//! `/livez` and `/readyz`: this proxy's own state, never that of an upstream, or one dead cluster would take a region down.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// The longest a turn of the agent's loop may take: a reload that does not come to an end takes half of this.
const TURN: Duration = Duration::from_secs(60);
/// How long one client may take.
const PATIENCE: Duration = Duration::from_secs(10);

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

    fn answer(&self, method: &Method, path: &str) -> (StatusCode, &'static str) {
        let (turns, ready) = self.change(|state| (state.turned.elapsed() < TURN, state.ready));
        match (method, path) {
            (&Method::GET | &Method::HEAD, "/livez") if turns => (StatusCode::OK, "ok\n"),
            (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::SERVICE_UNAVAILABLE, "the agent hangs\n"),
            (&Method::GET | &Method::HEAD, "/readyz") if ready => (StatusCode::OK, "ok\n"),
            (&Method::GET | &Method::HEAD, "/readyz") => {
                (StatusCode::SERVICE_UNAVAILABLE, "the routes are not applied yet, or no more\n")
            }
            _ => (StatusCode::NOT_FOUND, "there are /livez and /readyz\n"),
        }
    }
}

/// Listens for probes; the future returned answers them.
pub(super) async fn serve(port: u16, health: Health) -> anyhow::Result<impl Future<Output = ()>> {
    // Both families where there are two; a kernel without IPv6 has no `::`.
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("can't listen on the health port {port}"))?,
    };
    Ok(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(TokioIo::new(stream), health.clone()))),
                // Out of files, for example: give what holds them time to end.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    })
}

async fn answer(stream: TokioIo<tokio::net::TcpStream>, health: Health) {
    let service = service_fn(async |request: Request<Incoming>| {
        let (status, text) = health.answer(request.method(), request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new().timer(TokioTimer::new()).keep_alive(false).serve_connection(stream, service);
    // Whatever a prober does wrong is its own trouble.
    let _ = timeout(PATIENCE, connection).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn answers() {
        let health = Health::new();
        let status = |path| health.answer(&Method::GET, path).0.as_u16();
        assert_eq!([status("/livez"), status("/readyz"), status("/")], [200, 503, 404]);
        health.set_ready(true);
        assert_eq!(status("/readyz"), 200);
        health.change(|state| state.turned = Instant::now().checked_sub(TURN).unwrap());
        assert_eq!([status("/livez"), status("/readyz")], [503, 200]);
        health.turn();
        assert_eq!(status("/livez"), 200);
        assert_eq!(health.answer(&Method::POST, "/livez").0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_prober_gets_an_answer_also_while_another_says_nothing() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        tokio::spawn(serve(port, Health::new()).await.unwrap());
        let _silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut prober = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        prober.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut text = String::new();
        prober.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("ok\n"), "{text}");
    }
}
