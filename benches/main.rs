//! Benches: what is fast, shown as ratios of two things measured in one run.

fn main() {
    println!("{}", fhir_sync::fhir::ResourceType::OBSERVATION);
}
