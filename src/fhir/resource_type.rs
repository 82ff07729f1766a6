//! Resource types: the names that FHIR knows, and nothing else.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spelling::did_you_mean;

/// The name of a FHIR resource type, such as `Patient`. Always one of [`RESOURCE_TYPES`], so it is safe in a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceType(&'static str);

impl ResourceType {
    pub const BINARY: Self = Self("Binary");
    pub const BUNDLE: Self = Self("Bundle");
    pub const CONDITION: Self = Self("Condition");
    pub const ENCOUNTER: Self = Self("Encounter");
    pub const GROUP: Self = Self("Group");
    pub const MEDICATION_REQUEST: Self = Self("MedicationRequest");
    pub const OBSERVATION: Self = Self("Observation");
    pub const OPERATION_OUTCOME: Self = Self("OperationOutcome");
    pub const ORGANIZATION: Self = Self("Organization");
    pub const PARAMETERS: Self = Self("Parameters");
    pub const PATIENT: Self = Self("Patient");
    pub const PRACTITIONER: Self = Self("Practitioner");

    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl FromStr for ResourceType {
    type Err = UnknownResourceType;

    /// Case matters, as in FHIR: `patient` is not a resource type.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let alike = name.bytes().next().map_or(&[][..], beginning_with);
        // Names of another length are passed over without a look: this is asked for every reference of every resource.
        match alike.iter().find(|known| **known == name) {
            Some(known) => Ok(Self(known)),
            None => Err(UnknownResourceType { name: name.chars().take(64).collect() }),
        }
    }
}

/// The names with this first letter.
fn beginning_with(letter: u8) -> &'static [&'static str] {
    let Some(index) = letter.checked_sub(b'A').map(usize::from).filter(|index| *index < 26) else { return &[] };
    &RESOURCE_TYPES[FIRST[index]..FIRST[index + 1]]
}

/// By letter: where the names with it begin; where they end, those of the next one begin.
const FIRST: [usize; 27] = {
    let mut first = [0; 27];
    let mut index = 0;
    while index < RESOURCE_TYPES.len() {
        let letter = RESOURCE_TYPES[index].as_bytes()[0] - b'A';
        first[letter as usize + 1] = index + 1;
        index += 1;
    }
    let mut letter = 1;
    while letter < first.len() {
        if first[letter] == 0 {
            first[letter] = first[letter - 1];
        }
        letter += 1;
    }
    first
};

/// A name that is not a FHIR resource type.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownResourceType {
    name: String,
}

impl fmt::Display for UnknownResourceType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meant = did_you_mean(&self.name, RESOURCE_TYPES.iter().copied());
        write!(out, "{:?} is not a FHIR resource type{meant}", self.name)
    }
}

impl std::error::Error for UnknownResourceType {}

impl fmt::Display for ResourceType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.0)
    }
}

impl fmt::Debug for ResourceType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }
}

impl Serialize for ResourceType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for ResourceType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the definitions of R4 (4.0.1) name as resources, and what R4B and R5 added; sorted.
pub const RESOURCE_TYPES: &[&str] = &[
    "Account",
    "ActivityDefinition",
    "ActorDefinition",
    "AdministrableProductDefinition",
    "AdverseEvent",
    "AllergyIntolerance",
    "Appointment",
    "AppointmentResponse",
    "ArtifactAssessment",
    "AuditEvent",
    "Basic",
    "Binary",
    "BiologicallyDerivedProduct",
    "BiologicallyDerivedProductDispense",
    "BodyStructure",
    "Bundle",
    "CapabilityStatement",
    "CarePlan",
    "CareTeam",
    "CatalogEntry",
    "ChargeItem",
    "ChargeItemDefinition",
    "Citation",
    "Claim",
    "ClaimResponse",
    "ClinicalImpression",
    "ClinicalUseDefinition",
    "CodeSystem",
    "Communication",
    "CommunicationRequest",
    "CompartmentDefinition",
    "Composition",
    "ConceptMap",
    "Condition",
    "ConditionDefinition",
    "Consent",
    "Contract",
    "Coverage",
    "CoverageEligibilityRequest",
    "CoverageEligibilityResponse",
    "DetectedIssue",
    "Device",
    "DeviceAssociation",
    "DeviceDefinition",
    "DeviceDispense",
    "DeviceMetric",
    "DeviceRequest",
    "DeviceUsage",
    "DeviceUseStatement",
    "DiagnosticReport",
    "DocumentManifest",
    "DocumentReference",
    "EffectEvidenceSynthesis",
    "Encounter",
    "EncounterHistory",
    "Endpoint",
    "EnrollmentRequest",
    "EnrollmentResponse",
    "EpisodeOfCare",
    "EventDefinition",
    "Evidence",
    "EvidenceReport",
    "EvidenceVariable",
    "ExampleScenario",
    "ExplanationOfBenefit",
    "FamilyMemberHistory",
    "Flag",
    "FormularyItem",
    "GenomicStudy",
    "Goal",
    "GraphDefinition",
    "Group",
    "GuidanceResponse",
    "HealthcareService",
    "ImagingSelection",
    "ImagingStudy",
    "Immunization",
    "ImmunizationEvaluation",
    "ImmunizationRecommendation",
    "ImplementationGuide",
    "Ingredient",
    "InsurancePlan",
    "InventoryItem",
    "InventoryReport",
    "Invoice",
    "Library",
    "Linkage",
    "List",
    "Location",
    "ManufacturedItemDefinition",
    "Measure",
    "MeasureReport",
    "Media",
    "Medication",
    "MedicationAdministration",
    "MedicationDispense",
    "MedicationKnowledge",
    "MedicationRequest",
    "MedicationStatement",
    "MedicinalProduct",
    "MedicinalProductAuthorization",
    "MedicinalProductContraindication",
    "MedicinalProductDefinition",
    "MedicinalProductIndication",
    "MedicinalProductIngredient",
    "MedicinalProductInteraction",
    "MedicinalProductManufactured",
    "MedicinalProductPackaged",
    "MedicinalProductPharmaceutical",
    "MedicinalProductUndesirableEffect",
    "MessageDefinition",
    "MessageHeader",
    "MolecularSequence",
    "NamingSystem",
    "NutritionIntake",
    "NutritionOrder",
    "NutritionProduct",
    "Observation",
    "ObservationDefinition",
    "OperationDefinition",
    "OperationOutcome",
    "Organization",
    "OrganizationAffiliation",
    "PackagedProductDefinition",
    "Parameters",
    "Patient",
    "PaymentNotice",
    "PaymentReconciliation",
    "Permission",
    "Person",
    "PlanDefinition",
    "Practitioner",
    "PractitionerRole",
    "Procedure",
    "Provenance",
    "Questionnaire",
    "QuestionnaireResponse",
    "RegulatedAuthorization",
    "RelatedPerson",
    "RequestGroup",
    "RequestOrchestration",
    "Requirements",
    "ResearchDefinition",
    "ResearchElementDefinition",
    "ResearchStudy",
    "ResearchSubject",
    "RiskAssessment",
    "RiskEvidenceSynthesis",
    "Schedule",
    "SearchParameter",
    "ServiceRequest",
    "Slot",
    "Specimen",
    "SpecimenDefinition",
    "StructureDefinition",
    "StructureMap",
    "Subscription",
    "SubscriptionStatus",
    "SubscriptionTopic",
    "Substance",
    "SubstanceDefinition",
    "SubstanceNucleicAcid",
    "SubstancePolymer",
    "SubstanceProtein",
    "SubstanceReferenceInformation",
    "SubstanceSourceMaterial",
    "SubstanceSpecification",
    "SupplyDelivery",
    "SupplyRequest",
    "Task",
    "TerminologyCapabilities",
    "TestPlan",
    "TestReport",
    "TestScript",
    "Transport",
    "ValueSet",
    "VerificationResult",
    "VisionPrescription",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resource_types_are_sorted_so_that_they_can_be_searched() {
        assert!(RESOURCE_TYPES.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn every_resource_type_is_found_by_its_name_and_nothing_else_is_one() {
        for name in RESOURCE_TYPES {
            assert_eq!(name.parse::<ResourceType>().unwrap().as_str(), *name);
            assert!(format!("{name}s").parse::<ResourceType>().is_err());
            assert!(name[..name.len() - 1].parse::<ResourceType>().is_err());
        }
        for name in ["", "J", "Zebra", "@", "[", "É"] {
            assert!(name.parse::<ResourceType>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_resource_type_with_a_slip_is_refused_and_the_right_one_named() {
        for slip in ["patient", "Patients", "Pateint"] {
            let error = slip.parse::<ResourceType>().unwrap_err();
            let expected = format!("{slip:?} is not a FHIR resource type; did you mean \"Patient\"?");
            assert_eq!(error.to_string(), expected);
        }
        let error = "Zebra".parse::<ResourceType>().unwrap_err();
        assert_eq!(error.to_string(), "\"Zebra\" is not a FHIR resource type");
    }
}
