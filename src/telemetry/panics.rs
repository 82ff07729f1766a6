//! Panics: where one happened is logged, as a line like any other. Its message is not: that of a slice that does not end
//! between two characters has the text with it, which may be a resource.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    panic::PanicHookInfo,
};

use tokio::task::JoinError;

/// From now on panics of all threads are logged by their places. With `RUST_BACKTRACE` also the way there.
pub fn log_places() {
    std::panic::set_hook(Box::new(log));
}

fn log(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    if !tracing::dispatcher::has_been_set() {
        eprintln!("fhir-sync: panicked at {at}; this is a bug in fhir-sync");
        return;
    }
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(at, backtrace, "a thread panicked; this is a bug in fhir-sync");
}

/// How a task ended that has no result, without the message of a panic.
pub fn of_task(error: &JoinError) -> &'static str {
    if error.is_panic() { "it panicked; the line before says where" } else { "it was cancelled" }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_panic_is_logged_by_its_place_and_never_with_the_text_that_it_quotes() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log_of_test = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        let before = std::panic::take_hook();
        log_places();
        let error = tracing::subscriber::with_default(log_of_test, || {
            let text = "SECRET ü";
            std::panic::catch_unwind(|| text[..8].len()).unwrap_err()
        });
        std::panic::set_hook(before);
        assert!(error.downcast_ref::<String>().is_some_and(|message| message.contains("SECRET")), "it would be quoted");
        let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(logged.trim()).unwrap();
        assert!(line["fields"]["at"].as_str().unwrap().starts_with(file!()), "{logged}");
        assert!(!logged.contains("SECRET"), "{logged}");
    }

    #[tokio::test]
    async fn a_task_that_panicked_is_described_without_its_message() {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async { std::panic::resume_unwind(Box::new("SECRET".to_owned())) });
        let error = tasks.join_next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("SECRET"), "it would be quoted");
        assert_eq!(of_task(&error), "it panicked; the line before says where");
    }
}
