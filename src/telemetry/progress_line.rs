//! A line of progress: it stays below the log of a terminal, and is nowhere else.
//!
//! To the library it is a span: the layer that draws it takes it away while a line of the log is written, so that the two
//! do not tear each other.

use indicatif::ProgressStyle;
use tracing::Span;
use tracing_indicatif::span_ext::IndicatifSpanExt as _;

/// Of the spans that are lines of progress, and of nothing else.
pub(super) const TARGET: &str = "fhir_sync::progress_line";

/// It is gone when this is dropped.
pub struct ProgressLine(Span);

impl ProgressLine {
    pub fn begin() -> Self {
        let span = tracing::error_span!(target: TARGET, parent: None, "progress");
        // As wide as the terminal; what does not fit is cut off.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            span.pb_set_style(&style);
        }
        span.pb_start();
        Self(span)
    }

    pub fn set(&self, text: &str) {
        self.0.pb_set_message(text);
    }
}
