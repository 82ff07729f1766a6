//! Whatever the bytes are: every line is one row or one bad line, and nothing panics.

#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../src"]
mod source {
    pub mod fhir;
    pub mod resource;
}

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;

// Where they name each other by.
use source::{fhir, resource};

use crate::resource::{Decoder, Layout, Lines, Options, Shape};

static DECODERS: LazyLock<Vec<Decoder>> = LazyLock::new(|| {
    let options = Options { layout: Layout::Pathling, raw_json: true };
    let shapes = ["Patient", "Observation", "QuestionnaireResponse", "Bundle"].into_iter().flat_map(str::parse);
    let decoder = |shape: Arc<Shape>| Decoder {
        shape,
        source: "source".into(),
        run_started_micros: 0,
        transaction_time: None,
        job: "job".into(),
    };
    shapes.map(|resource_type| decoder(Shape::of(resource_type, options))).collect()
});

fuzz_target!(|bytes: &[u8]| {
    let mut splitter = Lines::new(1 << 20);
    let mut lines = Vec::new();
    splitter.push(bytes::Bytes::copy_from_slice(bytes), &mut lines);
    lines.extend(splitter.finish());
    for decoder in DECODERS.iter() {
        let count = lines.len();
        let decoded = decoder.decode(lines.clone()).expect("a fuzzer's input is far below 2 GiB");
        assert_eq!(decoded.rows.num_rows() + decoded.bad.len(), count);
        assert_eq!(decoded.rows.num_rows(), decoded.keys.len());
    }
});
