use super::Ends;
#[derive(clap::Args, Debug)]
pub struct Arguments {}
pub async fn run(_: Arguments) -> Result<(), Ends> {
    Ok(())
}
