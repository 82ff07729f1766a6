//! Whatever the bytes are: every line is one row or one bad line, nothing panics, and a line with a mapping has
//! the row that it would have without one.

#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../src"]
mod source {
    pub mod fhir;
    pub mod resource;
    pub mod spelling;
}

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;

// Where they name each other by.
use source::{fhir, resource, spelling};

use crate::resource::{Decoded, Decoder, Layout, Line, Lines, MappingPool, Options, Shape};

static DECODERS: LazyLock<Vec<Decoder>> = LazyLock::new(|| {
    let options = Options { layout: Layout::Pathling, raw_json: true };
    let shapes = ["Patient", "Observation", "QuestionnaireResponse", "Bundle"].into_iter().flat_map(str::parse);
    let decoder = |shape: Arc<Shape>| Decoder {
        mappings: MappingPool::of(&shape),
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
        // Twice: outlines are learned by the first.
        let decoder = Decoder { mappings: MappingPool::of(&decoder.shape), ..decoder.clone() };
        let mapped = [decode(&decoder, &lines), decode(&decoder, &lines)];
        let walked = decode(&Decoder { mappings: MappingPool::none(&decoder.shape), ..decoder }, &lines);
        assert_eq!(walked.rows.num_rows() + walked.bad.len(), lines.len());
        for mapped in mapped {
            assert_eq!((&mapped.keys, &mapped.rows, &mapped.bad), (&walked.keys, &walked.rows, &walked.bad));
        }
    }
});

/// The rows are in the order of the lines.
fn decode(decoder: &Decoder, lines: &[Line]) -> Decoded {
    let decoded = decoder.decode(lines).and_then(Decoded::in_line_order);
    decoded.expect("a fuzzer's input is far below 2 GiB")
}
