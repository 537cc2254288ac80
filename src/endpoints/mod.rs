//! `/livez`, `/readyz` and `/metrics` of what runs for long: the agent, the controller.

mod health;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::timeout;

pub use self::health::Health;

/// How long one client may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The media type of OpenMetrics' text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told.
#[derive(Clone)]
pub struct Endpoints {
    health: Health,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoints").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Endpoints {
    /// Tells this health, and metrics as OpenMetrics' text.
    pub fn new(health: Health, metrics: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { health, metrics: Arc::new(metrics) }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let probed = |trouble: Option<&str>| match trouble {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why.to_owned()),
        };
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let (status, text) = match path {
            "/livez" if reads => probed(self.health.hangs()),
            "/readyz" if reads => probed(self.health.not_ready()),
            "/metrics" if reads => (StatusCode::OK, (self.metrics)()),
            _ => (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = if path == "/metrics" && reads { OPEN_METRICS } else { "text/plain; charset=utf-8" };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// Listens; the future returned answers.
pub async fn serve(port: u16, endpoints: Endpoints) -> anyhow::Result<impl Future<Output = ()>> {
    // Both families where there are two; a kernel without IPv6 has no `::`.
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.with_context(|| format!("can't listen on the health port {port}"))?,
    };
    Ok(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(TokioIo::new(stream), endpoints.clone()))),
                // Out of files, for example: give what holds them time to end.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    })
}

async fn answer(stream: TokioIo<tokio::net::TcpStream>, endpoints: Endpoints) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(endpoints.answer(request.method(), request.uri().path()))
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

    fn endpoints() -> Endpoints {
        Endpoints::new(Health::new("not yet"), String::new)
    }

    #[test]
    fn answers() {
        let endpoints = endpoints();
        let status = |path| endpoints.answer(&Method::GET, path).status().as_u16();
        assert_eq!([status("/livez"), status("/readyz"), status("/metrics"), status("/")], [200, 503, 200, 404]);
        assert_eq!(endpoints.answer(&Method::POST, "/livez").status(), StatusCode::NOT_FOUND);
        let metrics = endpoints.answer(&Method::GET, "/metrics");
        assert!(metrics.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("application/openmetrics-text"));
    }

    #[tokio::test]
    async fn a_prober_gets_an_answer_also_while_another_says_nothing() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        tokio::spawn(serve(port, endpoints()).await.unwrap());
        let _silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut prober = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        prober.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut text = String::new();
        prober.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("ok\n"), "{text}");
    }
}
