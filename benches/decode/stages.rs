//! The measurement `stages`: what each step from lines to Parquet costs. Each row does what the one before it does, and
//! one thing more, in a process of its own; so a stage is the difference of two rows.

use std::path::Path;

use bytes::Bytes;
use fhir_sync::{
    fhir::ResourceType,
    resource::{Decoder, Layout, Line, Lines, Options, Shape, Stage},
    sync::MAX_BATCH_BYTES,
};

use super::{THREADS, in_parts, ours};
use crate::{
    Setup,
    child::{self, Row, Work},
    data,
};

const DECODED: &[(&str, Option<Stage>)] =
    &[("lines", None), ("values and hash", Some(Stage::Values)), ("builders", Some(Stage::Builders)), ("finish", None)];

pub fn run(setup: &Setup) -> anyhow::Result<()> {
    // Without `--data` only Observations are made in numbers.
    let types = if setup.data.is_some() {
        vec![ResourceType::OBSERVATION, "Claim".parse()?, "ExplanationOfBenefit".parse()?]
    } else {
        vec![ResourceType::OBSERVATION]
    };
    for of in types {
        let input = data::resources(setup, of, setup.bytes)?.display().to_string();
        let out = setup.dir.join("stages").display().to_string();
        let of = of.as_str();
        let mut rows = Vec::new();
        for (what, _) in DECODED {
            rows.push(Row { what, figures: child::measure("stages/decoded", &[&input, THREADS, of, what])? });
        }
        for (what, raw_json) in [("written, without resource_json", "false"), ("written", "true")] {
            let arguments = [input.as_str(), &out, THREADS, "filled", of, raw_json];
            rows.push(Row { what, figures: child::measure("decode/ours", &arguments)? });
        }
        println!("\nstages: {:.0} MB of {of}, {THREADS} threads", child::megabytes(rows[0].figures.bytes_in));
        child::print_table(&rows);
        std::fs::remove_dir_all(out)?;
    }
    Ok(())
}

/// Input, threads, resource type, stage.
pub fn decoded(arguments: &[String]) -> anyhow::Result<Work> {
    let [input, threads, of, stage] = arguments else { anyhow::bail!("four arguments") };
    let of: ResourceType = of.parse()?;
    let shape = Shape::of(of, Options { layout: Layout::Pathling, raw_json: true });
    let begin = |_| {
        let decoder = ours::decoder(&shape);
        let part = Part { decoder, lines: Lines::new(16 << 20), waiting: Vec::new(), waiting_bytes: 0, rows: 0 };
        Ok(part)
    };
    let decode = |part: &mut Part| part.decode(stage);
    let piece = |part: &mut Part, piece: Bytes| {
        part.waiting_bytes += piece.len();
        part.lines.push(piece, &mut part.waiting);
        if part.waiting_bytes >= MAX_BATCH_BYTES { decode(part) } else { Ok(()) }
    };
    let end = |mut part: Part| {
        part.waiting.extend(part.lines.finish());
        decode(&mut part)?;
        Ok(Work { bytes_in: 0, bytes_out: 0, rows: part.rows })
    };
    in_parts(Path::new(input), threads.parse()?, begin, piece, end)
}

struct Part {
    decoder: Decoder,
    lines: Lines,
    waiting: Vec<Line>,
    waiting_bytes: usize,
    rows: u64,
}

impl Part {
    fn decode(&mut self, stage: &str) -> anyhow::Result<()> {
        self.waiting_bytes = 0;
        let lines = std::mem::take(&mut self.waiting);
        self.rows += lines.len() as u64;
        let until = DECODED.iter().find(|(name, _)| *name == stage).and_then(|(_, until)| *until);
        match until {
            Some(until) => self.decoder.until(until, &lines)?,
            None if stage == "finish" => drop(self.decoder.decode(&lines)?),
            None => {}
        }
        Ok(())
    }
}
