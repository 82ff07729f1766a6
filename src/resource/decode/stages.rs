//! The stages of decoding, for measurements: each of them includes those before it.

use arrow::error::ArrowError;

use super::{Decoder, parsed, read, rows::Rows};
use crate::resource::{Line, content_hash::ContentHash, json::Tape};

/// How far a line is taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// UTF-8 and the tokens of JSON.
    Tape,
    /// Type, id and meta.
    Head,
    /// The content hash.
    Hash,
    /// All values in builders.
    Walk,
}

impl Decoder {
    /// Takes lines as far as `until`, and drops what that gives. Lines that cannot be rows are passed over.
    pub fn until(&self, until: Stage, lines: &[Line]) -> Result<(), ArrowError> {
        let lines_bytes = lines.iter().map(|line| line.bytes.len()).sum();
        let mut rows = Rows::new(self, lines.len(), lines_bytes);
        let (mut tape, mut content_hash) = (Tape::default(), ContentHash::default());
        for line in lines {
            if until == Stage::Tape {
                std::hint::black_box(parsed(&mut tape, line).is_ok());
                continue;
            }
            let Ok(read) = std::hint::black_box(read(&mut tape, line, self.shape.resource_type)) else { continue };
            if until >= Stage::Hash {
                let hash = std::hint::black_box(content_hash.of(read.document));
                if until >= Stage::Walk {
                    rows.append(read.document, read.text, &read.head, hash)?;
                }
            }
        }
        std::hint::black_box(rows);
        Ok(())
    }
}
