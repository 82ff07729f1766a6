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
    /// The part of them in the kernel.
    #[serde(default)]
    pub kernel_seconds: f64,
    /// Pages of memory that the kernel had to provide.
    #[serde(default)]
    pub minor_faults: u64,
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
    let (begin, before) = (Instant::now(), Used::until_now()?);
    let Work { bytes_in, bytes_out, rows } = (step.run)(arguments)?;
    let (wall_seconds, after) = (begin.elapsed().as_secs_f64(), Used::until_now()?);
    let kernel_seconds = after.kernel_seconds - before.kernel_seconds;
    let figures = Figures {
        wall_seconds,
        cpu_seconds: after.user_seconds - before.user_seconds + kernel_seconds,
        kernel_seconds,
        minor_faults: after.minor_faults - before.minor_faults,
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
        "{:widest$} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10}",
        "",
        "MB/s",
        "wall s",
        "CPU s",
        "kernel s",
        "faults",
        "peak MB",
        "read MB",
        "out MB",
        "rows",
        "of speed",
        "of CPU"
    );
    for Row { what, figures } in rows {
        println!(
            "{what:widest$} {:>8.0} {:>8.2} {:>8.2} {:>8.2} {:>9} {:>9.0} {:>9.1} {:>9.1} {:>10} {:>10.2} {:>10.2}",
            megabytes(figures.bytes_in) / figures.wall_seconds,
            figures.wall_seconds,
            figures.cpu_seconds,
            figures.kernel_seconds,
            figures.minor_faults,
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

/// What the process has used since it began.
struct Used {
    user_seconds: f64,
    kernel_seconds: f64,
    minor_faults: u64,
}

impl Used {
    /// From `/proc`, see proc(5): Linux counts the seconds in hundredths.
    fn until_now() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // The name of the program is in parentheses and may contain any character. `state` follows it, field 3.
        let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat is of another form")?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).context("/proc/self/stat is too short");
        let seconds = |number| Ok::<_, anyhow::Error>(field(number)?.parse::<f64>()? / 100.0);
        Ok(Self { user_seconds: seconds(14)?, kernel_seconds: seconds(15)?, minor_faults: field(10)?.parse()? })
    }
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
