//! Attempts: a store that does not answer is named in the log while a request to it is repeated.
//!
//! `object_store` repeats a request by itself, for minutes, and says nothing. This layer is below it and sees each
//! attempt. What always holds: a line for the first attempt that fails, then at most one every [`SAID_EVERY`].

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use object_store::{
    ClientOptions, RetryConfig,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
    },
};
use tokio::time::Instant;

use super::failure::problem;

/// Between two lines about one store.
const SAID_EVERY: Duration = Duration::from_secs(30);

/// Makes clients whose failed attempts are in the log.
#[derive(Debug)]
pub struct Connector {
    /// How long one request is repeated.
    retry_timeout: Duration,
}

impl Connector {
    pub fn of(retries: &RetryConfig) -> Self {
        Self { retry_timeout: retries.retry_timeout }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Attempts { client, retry_timeout: self.retry_timeout, outage: Mutex::default() }))
    }
}

struct Attempts {
    client: HttpClient,
    retry_timeout: Duration,
    outage: Mutex<Outage>,
}

#[derive(Clone, Copy, Default)]
struct Outage {
    /// When the first of the attempts began that have failed since the last good one.
    since: Option<Instant>,
    said: Option<Instant>,
}

impl fmt::Debug for Attempts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Attempts")
    }
}

/// What `async_trait` makes of an async function.
type Responding<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Attempts {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> Responding<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let began = Instant::now();
            let uri = request.uri();
            let host = uri.host().unwrap_or_default();
            let place = uri.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            let answer = self.client.execute(request).await;
            match why_repeated(&answer) {
                None => self.outage().since = None,
                Some(reason) => self.failed(&place, began, &reason),
            }
            answer
        })
    }
}

impl Attempts {
    fn outage(&self) -> std::sync::MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, place: &str, began: Instant, reason: &str) {
        let mut outage = self.outage();
        // A request that was repeated until its end is over; this one is another.
        let earlier = outage.since.filter(|since| since.elapsed() < self.retry_timeout);
        let since = *outage.since.insert(earlier.unwrap_or(began));
        if outage.said.is_some_and(|said| said.elapsed() < SAID_EVERY) {
            return;
        }
        outage.said = Some(Instant::now());
        drop(outage);
        let waited = since.elapsed();
        let left = self.retry_timeout.saturating_sub(waited).as_secs_f64().ceil();
        tracing::info!(
            place,
            reason,
            waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            "the object store {place} does not take a request ({reason}); it is repeated for up to {}",
            humantime::format_duration(Duration::from_secs_f64(left))
        );
    }
}

/// Why `object_store` will repeat the request; `None` where it was answered, or will not be repeated.
fn why_repeated(answer: &Result<HttpResponse, HttpError>) -> Option<String> {
    match answer {
        Ok(response) => {
            let status = response.status();
            let is_repeated = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
            is_repeated.then(|| status.as_u16().to_string())
        }
        Err(error) => {
            use HttpErrorKind::{Connect, Interrupted, Request, Timeout};
            matches!(error.kind(), Connect | Request | Timeout | Interrupted).then(|| problem(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use axum::http::{Request, Response};
    use tokio::time::advance;

    use super::*;

    /// A store that is away until it is told to be there.
    #[derive(Clone, Debug, Default)]
    struct Away(Arc<AtomicBool>);

    impl HttpService for Away {
        fn call<'a, 'b>(&'a self, _: HttpRequest) -> Responding<'b>
        where
            'a: 'b,
            Self: 'b,
        {
            let is_there = self.0.load(Ordering::Relaxed);
            let refused = std::io::Error::from_raw_os_error(111);
            Box::pin(async move {
                if is_there {
                    return Ok(Response::new(Vec::new().into()));
                }
                Err(HttpError::new(HttpErrorKind::Connect, refused))
            })
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn take(&self) -> Vec<String> {
            let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    async fn ask(attempts: &Attempts) {
        let uri = "http://store.example:9000/lake/Patient.parquet?X-Amz-Signature=s3cret";
        drop(attempts.call(Request::get(uri).body(Vec::new().into()).unwrap()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_is_named_after_the_first_attempt_and_then_every_half_minute() {
        let (away, log) = (Away::default(), Log::default());
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let client = HttpClient::new(away.clone());
        let attempts = Attempts { client, retry_timeout: Duration::from_mins(3), outage: Mutex::default() };
        ask(&attempts).await;
        let lines = log.take();
        let first = "INFO fhir_sync::store::attempts: the object store store.example:9000 does not take a request \
                     (Connection refused); it is repeated for up to 3m ";
        assert!(lines.len() == 1 && lines[0].contains(first) && !lines[0].contains("s3cret"), "{lines:#?}");
        for _ in 0..3 {
            advance(Duration::from_secs(10)).await;
            ask(&attempts).await;
        }
        let lines = log.take();
        assert!(lines.len() == 1 && lines[0].contains("up to 2m 30s"), "{lines:#?}");
        // The request was given up, and the next one begins with an outage of its own.
        advance(Duration::from_mins(3)).await;
        ask(&attempts).await;
        let lines = log.take();
        assert!(lines.len() == 1 && lines[0].contains("up to 3m "), "{lines:#?}");
        away.0.store(true, Ordering::Relaxed);
        ask(&attempts).await;
        assert_eq!((log.take(), attempts.outage().since), (Vec::new(), None));
    }
}
