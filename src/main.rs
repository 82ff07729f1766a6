//! The process: the arguments become a command, the command ends in an exit code.

use std::process::ExitCode;

use fhir_sync::cli::Cli;
use tikv_jemallocator::Jemalloc;

/// Returns memory to the system by threads of its own: docs/decisions/0022.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// The niceness of worker threads. It lets the health listener answer first; the shares of services and containers are
/// not affected.
const WORK_NICENESS: i32 = 5;

fn main() -> anyhow::Result<ExitCode> {
    // ring is in the tree too, and with two providers rustls refuses to choose. Before this line nothing can have set
    // one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::of_process();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Less urgent than this thread, and than that of the health listener, which it starts: they have an answer to
        // give while an upsert keeps all cores busy.
        .on_thread_start(|| {
            // Where it is not allowed, answers are slower, and nothing else.
            let _ = rustix::process::nice(WORK_NICENESS);
        })
        .build()?;
    Ok(runtime.block_on(cli.run()))
}
