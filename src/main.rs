//! Arguments, then whatever they ask for, then an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use fhir_sync::cli::Cli;

fn main() -> anyhow::Result<ExitCode> {
    // ring is in the tree as well; with two providers rustls refuses to choose. Nobody can have been faster than main.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(runtime.block_on(cli.run()))
}
