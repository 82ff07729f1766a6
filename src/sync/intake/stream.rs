//! The stream of one file: its bytes become lines, some MiB at a time, and its end is proved.
//!
//! The batches of one file are taken side by side, on as many threads as there are cores: each line knows its place, so
//! no batch waits for the one before it. How many batches of all files are in memory is limited.
//!
//! A file that ends in the middle of a line, or with fewer lines than announced, is read again once. The reader
//! receives each line once: what it has already is compared with what is read again.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use twox_hash::XxHash3_64;

use super::{Context, batches::Batches};
use crate::{
    export::{File, followed},
    resource::{Line, LineTooLong, Lines, OverLines},
    sync::{Error, blocking::blocking, chain, hex::hex},
};

/// Chunks between the network and the decoder, for each file.
const CHUNKS_IN_FLIGHT: usize = 8;
/// A file that is not whole is read this many times.
const READINGS: u32 = 2;

/// A file that was read to its end.
pub struct Streamed {
    pub bytes: u64,
    /// Of the decoded bytes, in hexadecimal digits, where it is asked for.
    pub sha256: Option<String>,
    pub name: String,
    too_long: Vec<LineTooLong>,
}

/// What becomes of the lines of a file. Its methods run on a thread that may block.
pub trait Reader: Send + Sync + 'static {
    /// Takes some lines, in order. The next lines of the file may be taken at the same time, by another thread.
    fn take(&self, context: &Context, file: &File, lines: Vec<Line>) -> Result<(), Error>;

    /// Takes what is known of the lines that were too long, when the file has ended.
    fn take_too_long(&self, _context: &Context, file: &File, lines: Vec<LineTooLong>) -> Result<(), Error> {
        let first = lines.into_iter().next();
        first.map_or(Ok(()), |source| Err(Error::LongLine { file: file.name.clone(), source }))
    }

    /// How many of the things that the manifest counts were in `lines` lines; `announced` is how many it says.
    fn counted(&self, lines: u64, _announced: u64) -> u64 {
        lines
    }
}

/// Downloads a file and gives its lines to `reader`.
pub async fn stream(context: &Arc<Context>, file: &File, reader: Arc<impl Reader>) -> Result<Streamed, Error> {
    let mut taken = Taken::default();
    let mut readings_left = READINGS;
    loop {
        readings_left -= 1;
        let read = read_once(context, file, &reader, &mut taken).await;
        match read.and_then(|streamed| check_count(file, &*reader, taken.lines, streamed)) {
            Err(error @ (Error::CutLine { .. } | Error::TooFewLines { .. })) if readings_left > 0 => {
                tracing::warn!(file = file.name, error = chain(&error), "the file is not whole; it is read again");
            }
            Ok(mut streamed) if !streamed.too_long.is_empty() => {
                let (context, file) = (Arc::clone(context), file.clone());
                let too_long = std::mem::take(&mut streamed.too_long);
                blocking(move || reader.take_too_long(&context, &file, too_long)).await?;
                return Ok(streamed);
            }
            ended => return ended,
        }
    }
}

async fn read_once(
    context: &Arc<Context>,
    file: &File,
    reader: &Arc<impl Reader>,
    taken: &mut Taken,
) -> Result<Streamed, Error> {
    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let download = context.client.download(file, &context.links, sender);
    let download = followed(context.progress.on_retry(), download);
    let consume = consume(context, file, receiver, reader, taken);
    let (receipt, consumed) = tokio::join!(download, consume);
    // When `consume` fails, the download fails too, but only because its channel was closed: the cause comes first.
    let Consumed { is_whole, too_long } = consumed?;
    let receipt = receipt?;
    if !is_whole {
        return Err(Error::CutLine { file: file.name.clone() });
    }
    let sha256 = receipt.sha256.map(|sha256| hex(&sha256));
    Ok(Streamed { bytes: receipt.bytes, sha256, name: file.name.clone(), too_long })
}

/// The lines of one reading have been handed over.
struct Consumed {
    /// Whether the last line is whole. Where the server announces neither length nor count, only that distinguishes a file
    /// that was cut from one that ended (F3).
    is_whole: bool,
    too_long: Vec<LineTooLong>,
}

async fn consume(
    context: &Arc<Context>,
    file: &File,
    mut chunks: mpsc::Receiver<Bytes>,
    reader: &Arc<impl Reader>,
    taken: &mut Taken,
) -> Result<Consumed, Error> {
    let mut batches = Batches::new(&context.slots);
    let split = split(context, file, &mut chunks, reader, &mut batches, taken).await;
    // Every line is taken before the file has ended, or is read again. What a batch failed by comes first.
    batches.end().await.and(split)
}

/// Hands over the lines of one reading.
async fn split(
    context: &Arc<Context>,
    file: &File,
    chunks: &mut mpsc::Receiver<Bytes>,
    reader: &Arc<impl Reader>,
    batches: &mut Batches,
    taken: &mut Taken,
) -> Result<Consumed, Error> {
    let mut splitter = Lines::new(context.max_line_bytes);
    let mut over_lines = OverLines::new(context.max_line_bytes);
    let mut again = Again { left: taken.lines, hash: LinesHash::default() };
    let mut lines = Vec::new();
    let mut waiting_bytes = 0;
    while let Some(chunk) = chunks.recv().await {
        waiting_bytes += chunk.len();
        context.progress.update(|progress| progress.bytes += chunk.len() as u64);
        splitter.push(chunk, &mut lines);
        if waiting_bytes >= context.slots.batch_bytes {
            waiting_bytes = 0;
            let new = again.new_lines(file, taken, over_lines.join(std::mem::take(&mut lines)))?;
            hand_over(context, file, new, reader, batches).await?;
        }
    }
    let last = splitter.finish();
    let is_whole = |line: &Line| serde_json::from_slice::<serde::de::IgnoredAny>(&line.bytes).is_ok();
    let unfinished = last.as_ref().is_some_and(|line| !is_whole(line));
    lines.extend(last);
    let mut joined = over_lines.join(lines);
    let mut rest = over_lines.finish();
    // The end of a longer resource is not JSON by itself, but completes it.
    let whole = rest.is_empty() && (!unfinished || joined.last().is_none_or(is_whole));
    if !whole && rest.pop().is_none() {
        joined.pop();
    }
    if whole {
        joined.append(&mut rest);
    }
    let new = again.new_lines(file, taken, joined)?;
    hand_over(context, file, new, reader, batches).await?;
    if whole && again.left > 0 {
        return Err(changed(file));
    }
    Ok(Consumed { is_whole: whole, too_long: splitter.too_long() })
}

/// The lines that the reader has received.
#[derive(Default)]
struct Taken {
    lines: u64,
    hash: LinesHash,
}

/// Of the lines and their order.
#[derive(Default, PartialEq, Eq)]
struct LinesHash(u64);

impl LinesHash {
    fn add(&mut self, line: &Line) {
        self.0 = (self.0.rotate_left(5) ^ XxHash3_64::oneshot(&line.bytes)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The lines of this reading that the reader has from the one before.
struct Again {
    left: u64,
    hash: LinesHash,
}

impl Again {
    /// The lines that are new to the reader.
    fn new_lines(&mut self, file: &File, taken: &mut Taken, mut lines: Vec<Line>) -> Result<Vec<Line>, Error> {
        let again = usize::try_from(self.left).unwrap_or(usize::MAX).min(lines.len());
        if again > 0 {
            for line in lines.drain(..again) {
                self.hash.add(&line);
            }
            self.left -= again as u64;
            if self.left == 0 && self.hash != taken.hash {
                return Err(changed(file));
            }
        }
        for line in &lines {
            taken.hash.add(line);
        }
        taken.lines += lines.len() as u64;
        Ok(lines)
    }
}

fn changed(file: &File) -> Error {
    crate::export::Error::FileChanged { file: file.name.clone() }.into()
}

async fn hand_over(
    context: &Arc<Context>,
    file: &File,
    lines: Vec<Line>,
    reader: &Arc<impl Reader>,
    batches: &mut Batches,
) -> Result<(), Error> {
    let (context, file, reader) = (Arc::clone(context), file.clone(), Arc::clone(reader));
    context.progress.update(|progress| progress.lines += lines.len() as u64);
    batches.begin(move || reader.take(&context, &file, lines)).await
}

/// Fewer lines than announced are a loss; more are only a wrong count (rule 56).
fn check_count(file: &File, reader: &impl Reader, lines: u64, streamed: Streamed) -> Result<Streamed, Error> {
    let Some(expected) = file.count else { return Ok(streamed) };
    let found = reader.counted(lines + streamed.too_long.len() as u64, expected);
    if found < expected {
        return Err(Error::TooFewLines { file: file.name.clone(), expected, found });
    }
    if found > expected {
        tracing::warn!(file = file.name, expected, found, "the file has more lines than the manifest announced");
    }
    Ok(streamed)
}
