//! The process: the arguments become a command, the command ends in an exit code.

use std::process::ExitCode;

use fhir_sync::cli::Cli;

fn main() -> anyhow::Result<ExitCode> {
    // ring is in the tree too, and with two providers rustls refuses to choose. Before this line nothing can have set
    // one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::of_process();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime.block_on(cli.run()))
}
