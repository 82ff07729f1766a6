//! The members of a group: the patients whose data an export at the level group has (rules 107 to 112).
//!
//! A list is taken for whole, or not at all: whoever is missing in a list that is not whole would count as one who left.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use serde::Deserialize;

use super::{
    Client, Error, RequestSpec,
    error::shown,
    failure::Failure,
    request::under,
    retry::{date, is_transient, retrying},
};
use crate::{fhir::parse_instant, telemetry::metrics::Endpoint};

/// What a server says of the members of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Members {
    /// The logical ids of all patients who are members now.
    Listed(BTreeSet<String>),
    /// Nobody can say who they are; why.
    Unknown(String),
}

#[derive(Deserialize)]
struct Group {
    #[serde(rename = "resourceType")]
    resource_type: String,
    member: Option<Vec<Member>>,
}

#[derive(Deserialize)]
struct Member {
    entity: Entity,
    inactive: Option<bool>,
    period: Option<Period>,
}

#[derive(Deserialize)]
struct Entity {
    reference: Option<String>,
}

#[derive(Deserialize)]
struct Period {
    end: Option<String>,
}

impl Client {
    /// Reads the Group resource. An answer that is no list of patients is not an error.
    ///
    /// # Errors
    /// [`Error::Unreachable`], and what a token can cost.
    pub async fn members(&self, group: &str) -> Result<Members, Error> {
        let url = under(&self.config.server, ["Group", group]);
        let context = format!("members at {}", shown(&url));
        let spec = RequestSpec {
            headers: &[("cache-control", "no-cache")],
            ..RequestSpec::get(Endpoint::Metadata, &url, "application/fhir+json", &context)
        };
        retrying(&self.config.http, spec.endpoint, &context, || async {
            let response = self.send(&spec).await?;
            let (status, now) = (response.status(), date(response.headers()));
            if is_transient(status) {
                return Err(self.http.fault(response).await.into());
            }
            if status != StatusCode::OK {
                return Ok(Members::Unknown(format!("the server answers {status}")));
            }
            let limit_bytes = self.config.limits.max_manifest_bytes;
            let body = self.http.read(response, limit_bytes).await?;
            Ok::<_, Failure>(match body {
                Some(body) => of(&body, now),
                None => Members::Unknown("it is larger than server.http.max_manifest_size".to_owned()),
            })
        })
        .await
    }
}

/// The members of a Group at this time of its server.
fn of(body: &[u8], now: Option<DateTime<Utc>>) -> Members {
    let unknown = |why: &str| Members::Unknown(why.to_owned());
    let Some(group) = serde_json::from_slice::<Group>(body).ok().filter(|group| group.resource_type == "Group") else {
        return unknown("what the server answers is not a Group");
    };
    // Servers leave the list out where they compute it, or where it is long.
    let Some(members) = group.member.filter(|members| !members.is_empty()) else {
        return unknown("it lists no members");
    };
    let mut ids = BTreeSet::new();
    for member in members {
        let Some(id) = member.entity.reference.as_deref().and_then(patient) else {
            return unknown("it has members that are not references to patients");
        };
        if member.is_active(now) {
            ids.insert(id.to_owned());
        }
    }
    Members::Listed(ids)
}

impl Member {
    fn is_active(&self, now: Option<DateTime<Utc>>) -> bool {
        let end = self.period.as_ref().and_then(|period| period.end.as_deref());
        let has_ended = end.zip(now).is_some_and(|(end, now)| match parse_instant(end) {
            Some(end) => end < now,
            // A date goes to its end, and so do a month and a year.
            None => now.to_rfc3339().get(..end.len()).is_some_and(|today| today > end),
        });
        self.inactive != Some(true) && !has_ended
    }
}

/// The id in `Patient/1`, absolute or with a version.
fn patient(reference: &str) -> Option<&str> {
    let current = reference.split("/_history/").next()?;
    let (rest, id) = current.rsplit_once('/')?;
    let is_patient = rest == "Patient" || rest.ends_with("/Patient");
    (is_patient && !id.is_empty() && !id.contains(['?', '#'])).then_some(id)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn members(group: &Value) -> Result<Vec<String>, String> {
        let now = parse_instant("2026-11-20T10:00:00Z");
        match of(group.to_string().as_bytes(), now) {
            Members::Listed(ids) => Ok(ids.into_iter().collect()),
            Members::Unknown(why) => Err(why),
        }
    }

    fn group(members: &Value) -> Value {
        json!({"resourceType": "Group", "id": "g", "type": "person", "actual": true, "member": members})
    }

    fn of_patient(reference: &str) -> Value {
        json!({"entity": {"reference": reference}})
    }

    #[test]
    fn members_are_read_from_every_form_of_reference() {
        let all = ["Patient/1", "https://ehr.example.org/fhir/Patient/2", "Patient/3/_history/7", "Patient/1"];
        assert_eq!(members(&group(&all.map(of_patient).into())).unwrap(), ["1", "2", "3"]);
    }

    #[test]
    fn who_is_inactive_or_whose_time_has_ended_is_not_a_member() {
        let until = |end: &str| json!({"entity": {"reference": format!("Patient/{end}")}, "period": {"end": end}});
        let inactive = json!({"entity": {"reference": "Patient/gone"}, "inactive": true});
        let ends = ["2026-11-20T09:59:59Z", "2026-11-20T12:00:00+01:00", "2026-11-19", "2026-11-20", "2026-10", "2026"];
        let all: Vec<_> = ends.map(until).into_iter().chain([inactive]).collect();
        assert_eq!(members(&group(&all.into())).unwrap(), ["2026", "2026-11-20", "2026-11-20T12:00:00+01:00"]);
    }

    #[test]
    fn a_list_that_is_not_whole_is_no_list() {
        for unknown in [
            json!({"resourceType": "Group", "characteristic": [{}]}),
            group(&json!([])),
            group(&json!([{"entity": {"identifier": {"value": "1"}}}])),
            group(&json!([{"entity": {"reference": "Patient/1"}}, {"entity": {"reference": "Group/h"}}])),
            group(&json!([of_patient("Patient?identifier=1")])),
            json!({"resourceType": "OperationOutcome"}),
            json!([]),
        ] {
            assert!(members(&unknown).is_err(), "{unknown}");
        }
    }
}
