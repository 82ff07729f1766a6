//! The world: the data of the simulated server. Resources with their versions, deletions with their times, and a
//! logical clock.
//!
//! The clock does not follow real time: it starts at [`START`] and moves only when [`World::advance`] is called, so
//! every instant in an export is known beforehand. A resource is kept as the line that is sent.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::json_object::{JsonObject, text};
use crate::fhir::{Deletion, ResourceType};

/// The time of a new world: 2026-01-01T00:00:00Z.
pub const START: DateTime<Utc> = DateTime::from_timestamp_nanos(1_767_225_600_000_000_000);

/// The data of a server, and the time on its clock.
#[derive(Clone, Debug)]
pub struct World {
    now: DateTime<Utc>,
    types: BTreeMap<ResourceType, Resources>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    pub fn new() -> Self {
        Self { now: START, types: BTreeMap::new() }
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Moves the clock forward; it stops at the end of the calendar.
    pub fn advance(&mut self, by: Duration) {
        let by = TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
        self.now = self.now.checked_add_signed(by).unwrap_or(self.now);
    }

    /// Moves the clock back, as when a clock that was wrong is set right; what was stored keeps its times.
    pub fn set_back(&mut self, by: Duration) {
        let by = TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
        self.now = self.now.checked_sub_signed(by).unwrap_or(self.now);
    }

    /// The data become those of a backup, and the clock goes on.
    pub fn restore(&mut self, backup: Self) {
        self.types = backup.types;
    }

    /// Stores the next version of a resource and returns its number, from 1. The world sets `resourceType`, `id`,
    /// `meta.versionId` and `meta.lastUpdated` (now); everything else is sent as it is in `resource`.
    pub fn put(&mut self, resource_type: ResourceType, id: &str, resource: impl Into<JsonObject>) -> u64 {
        let now = self.now;
        let entry = self.of_type(resource_type).entry(id);
        entry.version += 1;
        entry.last_updated = now;
        entry.state = State::Live(line(resource_type, id, entry.version, now, resource.into()).into());
        entry.version
    }

    /// Deletes a resource; the deletion counts as a version, as it does on real servers. `false`: there is no such
    /// resource.
    pub fn delete(&mut self, resource_type: ResourceType, id: &str) -> bool {
        let now = self.now;
        let resources = self.of_type(resource_type);
        let index = resources.by_id.get(id).copied();
        let live = index.and_then(|index| resources.entries.get_mut(index)).filter(|entry| entry.is_live());
        let Some(entry) = live else { return false };
        *entry = Entry { id: entry.id.clone(), version: entry.version + 1, last_updated: now, state: State::Deleted };
        true
    }

    /// Adds a line that does not belong to a stored resource: broken JSON, no id, an older version, a duplicate. It is
    /// sent unchanged at the end of every further export of the type, whatever its `_since`.
    pub fn push_line(&mut self, resource_type: ResourceType, line: impl Into<Arc<str>>) {
        self.of_type(resource_type).pushed_lines.push(line.into());
    }

    /// Removes the pushed lines of all types.
    pub fn clear_pushed_lines(&mut self) {
        for resources in self.types.values_mut() {
            resources.pushed_lines.clear();
        }
    }

    /// The line of a resource as it is sent; `None` if it does not exist or is deleted.
    pub fn line(&self, resource_type: ResourceType, id: &str) -> Option<&str> {
        let resources = self.types.get(&resource_type)?;
        resources.entries.get(*resources.by_id.get(id)?)?.line().map(AsRef::as_ref)
    }

    /// The types that have or had resources; sorted.
    pub fn types(&self) -> impl Iterator<Item = ResourceType> {
        self.types.keys().copied()
    }

    /// The id and the line of each resource of a type that is not deleted, in the order of creation.
    pub fn resources(&self, resource_type: ResourceType) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.types.get(&resource_type).into_iter().flat_map(|resources| &resources.entries);
        entries.filter_map(|entry| Some((entry.id.as_ref(), entry.line()?.as_ref())))
    }

    /// How many resources of the type are not deleted.
    pub fn count(&self, resource_type: ResourceType) -> usize {
        self.resources(resource_type).count()
    }

    /// The lines of an export: the resources with `lastUpdated >= since` (all of them without a `since`), then the
    /// pushed lines.
    pub fn lines(&self, resource_type: ResourceType, since: Option<DateTime<Utc>>) -> Vec<Arc<str>> {
        let Some(resources) = self.types.get(&resource_type) else { return Vec::new() };
        let changed = resources.entries.iter().filter(|entry| since.is_none_or(|since| entry.last_updated >= since));
        changed.filter_map(Entry::line).chain(&resources.pushed_lines).cloned().collect()
    }

    /// The resources that were deleted at or after `since` and do not exist again, ordered by the time of deletion.
    pub fn deleted(&self, resource_type: ResourceType, since: DateTime<Utc>) -> Vec<Deletion> {
        let Some(resources) = self.types.get(&resource_type) else { return Vec::new() };
        let deleted = resources.entries.iter().filter(|entry| !entry.is_live() && entry.last_updated >= since);
        let mut deletions: Vec<_> = deleted
            .map(|entry| Deletion { resource_type, id: entry.id.to_string(), at: Some(entry.last_updated) })
            .collect();
        deletions.sort_by_key(|deletion| deletion.at);
        deletions
    }

    fn of_type(&mut self, resource_type: ResourceType) -> &mut Resources {
        self.types.entry(resource_type).or_default()
    }
}

/// An instant as this server writes it: UTC, with milliseconds.
pub fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The resources of one type, in the order of their creation.
#[derive(Clone, Debug, Default)]
struct Resources {
    entries: Vec<Entry>,
    /// Indexes of `entries`.
    by_id: HashMap<Arc<str>, usize>,
    pushed_lines: Vec<Arc<str>>,
}

impl Resources {
    /// The entry of an id; a new one of version 0 if there is none.
    fn entry(&mut self, id: &str) -> &mut Entry {
        let index = self.by_id.get(id).copied().unwrap_or_else(|| {
            let (id, index) = (Arc::<str>::from(id), self.entries.len());
            self.entries.push(Entry { id: id.clone(), version: 0, last_updated: START, state: State::Deleted });
            self.by_id.insert(id, index);
            index
        });
        &mut self.entries[index]
    }
}

#[derive(Clone, Debug)]
struct Entry {
    id: Arc<str>,
    version: u64,
    last_updated: DateTime<Utc>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Live(Arc<str>),
    Deleted,
}

impl Entry {
    fn line(&self) -> Option<&Arc<str>> {
        match &self.state {
            State::Live(line) => Some(line),
            State::Deleted => None,
        }
    }

    fn is_live(&self) -> bool {
        self.line().is_some()
    }
}

fn line(
    resource_type: ResourceType,
    id: &str,
    version: u64,
    last_updated: DateTime<Utc>,
    mut resource: JsonObject,
) -> String {
    let mut given = resource.remove("meta").and_then(|meta| JsonObject::read(&meta)).unwrap_or_default();
    for ours in ["versionId", "lastUpdated"] {
        given.remove(ours);
    }
    for ours in ["resourceType", "id"] {
        resource.remove(ours);
    }
    let meta =
        JsonObject::from([("versionId", text(&version.to_string())), ("lastUpdated", text(&instant(last_updated)))]);
    let head = JsonObject::from([
        ("resourceType", text(resource_type.as_str())),
        ("id", text(id)),
        ("meta", meta.and(given).to_string()),
    ]);
    head.and(resource).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PATIENT: ResourceType = ResourceType::PATIENT;

    #[test]
    fn a_new_world_begins_with_the_year_2026() {
        assert_eq!(instant(World::new().now()), "2026-01-01T00:00:00.000Z");
    }

    #[test]
    fn each_put_is_the_next_version_with_the_current_time() {
        let mut world = World::new();
        world.put(PATIENT, "p1", json!({"gender": "female", "meta": {"versionId": "7", "source": "urn:x"}}));
        world.advance(Duration::from_millis(1_500));
        assert_eq!(world.put(PATIENT, "p1", json!({"gender": "male"})), 2);
        assert_eq!(
            world.line(PATIENT, "p1"),
            Some(
                r#"{"resourceType":"Patient","id":"p1","meta":{"versionId":"2","lastUpdated":"2026-01-01T00:00:01.500Z"},"gender":"male"}"#
            )
        );
    }

    #[test]
    fn the_meta_of_a_resource_is_sent_except_for_its_version_and_time() {
        let mut world = World::new();
        world.put(PATIENT, "p1", json!({"meta": {"versionId": "7", "source": "urn:x"}}));
        assert_eq!(
            world.line(PATIENT, "p1"),
            Some(
                r#"{"resourceType":"Patient","id":"p1","meta":{"versionId":"1","lastUpdated":"2026-01-01T00:00:00.000Z","source":"urn:x"}}"#
            )
        );
    }

    #[test]
    fn a_change_at_the_instant_of_since_is_sent_again() {
        let mut world = World::new();
        world.put(PATIENT, "before", json!({}));
        world.advance(Duration::from_secs(1));
        let since = world.now();
        world.put(PATIENT, "at", json!({}));
        world.advance(Duration::from_secs(1));
        world.put(PATIENT, "after", json!({}));
        assert_eq!(world.lines(PATIENT, Some(since)).len(), 2);
        assert_eq!(world.lines(PATIENT, None).len(), 3);
    }

    #[test]
    fn a_deletion_is_reported_until_the_resource_exists_again_with_a_higher_version() {
        let mut world = World::new();
        world.put(PATIENT, "p1", json!({}));
        let since = world.now();
        assert!(world.delete(PATIENT, "p1"));
        assert!(!world.delete(PATIENT, "p1"), "it is deleted already");
        assert_eq!(world.lines(PATIENT, None).len(), 0);
        assert_eq!(world.deleted(PATIENT, since).len(), 1);
        assert_eq!(world.put(PATIENT, "p1", json!({})), 3);
        assert_eq!(world.deleted(PATIENT, since), vec![]);
    }

    #[test]
    fn a_pushed_line_is_in_every_export_until_it_is_removed() {
        let mut world = World::new();
        world.push_line(PATIENT, "{broken");
        assert_eq!(world.lines(PATIENT, Some(world.now() + TimeDelta::days(1))), vec![Arc::from("{broken")]);
        world.clear_pushed_lines();
        assert_eq!(world.lines(PATIENT, None).len(), 0);
    }
}
