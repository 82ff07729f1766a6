//! A child: one measured thing in a process of its own.
//!
//! It does its step once and prints [`Figures`] as its last line. Nothing else of the parent is in its memory.

use std::{path::Path, process::Command, time::Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// What a child can do; the arguments are the step's own.
pub struct Step {
    pub name: &'static str,
    pub run: fn(&[String]) -> anyhow::Result<Work>,
}

/// What a step has done.
pub struct Work {
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub rows: u64,
}

/// What a step has done and what it took.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Figures {
    pub wall_seconds: f64,
    /// Of all threads, in the program and in the kernel.
    pub cpu_seconds: f64,
    pub peak_rss_bytes: u64,
    /// By system calls, from files and from the page cache.
    #[serde(default)]
    pub read_bytes: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub rows: u64,
}

/// Runs a step in a child.
pub fn measure(step: &str, arguments: &[&str]) -> anyhow::Result<Figures> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--child", step]).args(arguments);
    figures(command)
}

/// Runs a Python script that prints the figures of itself.
pub fn measure_python(python: &Path, script: &str, arguments: &[&str]) -> anyhow::Result<Figures> {
    let mut command = Command::new(python);
    command.args(["-c", script]).args(arguments);
    figures(command)
}

/// The child's side of [`measure`].
pub fn run(steps: &[Step], arguments: &[String]) -> anyhow::Result<()> {
    let (name, arguments) = arguments.split_first().context("a child needs a step")?;
    let step = steps.iter().find(|step| step.name == name).with_context(|| format!("no step {name}"))?;
    let (begin, cpu_seconds_before) = (Instant::now(), cpu_seconds()?);
    let Work { bytes_in, bytes_out, rows } = (step.run)(arguments)?;
    let figures = Figures {
        wall_seconds: begin.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds()? - cpu_seconds_before,
        peak_rss_bytes: peak_rss_bytes()?,
        read_bytes: read_bytes()?,
        bytes_in,
        bytes_out,
        rows,
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// One line of a table.
pub struct Row<'a> {
    pub what: &'a str,
    pub figures: Figures,
}

/// Prints figures side by side, each as a ratio to the first.
pub fn print_table(rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    let widest = rows.iter().map(|row| row.what.len()).max().unwrap_or_default();
    println!(
        "{:widest$} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10}",
        "", "MB/s", "wall s", "CPU s", "peak MB", "read MB", "out MB", "rows", "of speed", "of CPU"
    );
    for Row { what, figures } in rows {
        println!(
            "{what:widest$} {:>8.0} {:>8.2} {:>8.2} {:>9.0} {:>9.1} {:>9.1} {:>10} {:>10.2} {:>10.2}",
            megabytes(figures.bytes_in) / figures.wall_seconds,
            figures.wall_seconds,
            figures.cpu_seconds,
            megabytes(figures.peak_rss_bytes),
            megabytes(figures.read_bytes),
            megabytes(figures.bytes_out),
            figures.rows,
            first.figures.wall_seconds / figures.wall_seconds,
            figures.cpu_seconds / first.figures.cpu_seconds,
        );
    }
}

/// Millions of bytes.
#[expect(clippy::cast_precision_loss, reason = "to be read by people")]
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn figures(mut command: Command) -> anyhow::Result<Figures> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("a child failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    // What a child says besides its figures.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().context("a child printed nothing")?;
    serde_json::from_str(last).with_context(|| format!("no figures: {last}"))
}

/// From `/proc`: Linux counts them in hundredths.
fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name of the program is in parentheses and may contain any character.
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat is of another form")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / 100.0)
}

fn peak_rss_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    Ok(peak.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn read_bytes() -> anyhow::Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).context("no rchar in /proc/self/io")?;
    Ok(read.trim().parse()?)
}
