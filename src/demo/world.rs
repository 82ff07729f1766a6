//! The world: what the server knows. Resources with their versions, what was deleted and when, and a logical clock.
//!
//! The clock never follows the wall: it starts at [`START`] and moves only when it is told to, so every instant in an
//! export is known beforehand. A resource is kept as the line that is sent.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::json_object::{Body, text};
use crate::fhir::{Deletion, ResourceType};

/// Where the clock of a new world stands: 2026-01-01T00:00:00Z.
pub const START: DateTime<Utc> = DateTime::from_timestamp_nanos(1_767_225_600_000_000_000);

/// The data of a server at one moment of its own time.
#[derive(Clone, Debug)]
pub struct World {
    now: DateTime<Utc>,
    stocks: BTreeMap<ResourceType, Stock>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    pub fn new() -> Self {
        Self { now: START, stocks: BTreeMap::new() }
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Moves the clock on; where the calendar ends, it stays.
    pub fn advance(&mut self, by: Duration) {
        let by = TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
        self.now = self.now.checked_add_signed(by).unwrap_or(self.now);
    }

    /// Stores the next version of a resource and returns its number, from 1. `resourceType`, `id`, `meta.versionId` and
    /// `meta.lastUpdated` (now) are the world's to say; everything else is sent as it stands in `body`.
    pub fn put(&mut self, resource_type: ResourceType, id: &str, body: impl Into<Body>) -> u64 {
        let (stock, now) = self.stock(resource_type);
        let entry = stock.entry(id);
        entry.version += 1;
        entry.last_updated = now;
        entry.state = State::Live(line(resource_type, id, entry.version, now, body.into()).into());
        entry.version
    }

    /// Deletes a resource; the deletion counts as a version, as it does on real servers. `false`: there was none.
    pub fn delete(&mut self, resource_type: ResourceType, id: &str) -> bool {
        let (stock, now) = self.stock(resource_type);
        let live = stock.places.get(id).and_then(|place| stock.entries.get_mut(*place)).filter(|entry| entry.is_live());
        let Some(entry) = live else { return false };
        *entry = Entry { id: entry.id.clone(), version: entry.version + 1, last_updated: now, state: State::Deleted };
        true
    }

    /// A line that no resource stands behind: broken JSON, no id, an older version, a duplicate. It is sent, as it is,
    /// at the end of every further export of the type, whatever its `_since`.
    pub fn push_line(&mut self, resource_type: ResourceType, line: impl Into<Arc<str>>) {
        self.stock(resource_type).0.pushed.push(line.into());
    }

    /// Forgets the pushed lines of all types.
    pub fn clear_pushed_lines(&mut self) {
        for stock in self.stocks.values_mut() {
            stock.pushed.clear();
        }
    }

    /// The line of a resource, as it is sent.
    pub fn line(&self, resource_type: ResourceType, id: &str) -> Option<&str> {
        let stock = self.stocks.get(&resource_type)?;
        stock.entries.get(*stock.places.get(id)?)?.line().map(AsRef::as_ref)
    }

    /// The types that have, or had, resources; sorted.
    pub fn types(&self) -> impl Iterator<Item = ResourceType> {
        self.stocks.keys().copied()
    }

    /// The id and the line of each resource of a type that is not deleted, in the order of creation.
    pub fn resources(&self, resource_type: ResourceType) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.stocks.get(&resource_type).into_iter().flat_map(|stock| &stock.entries);
        entries.filter_map(|entry| Some((entry.id.as_ref(), entry.line()?.as_ref())))
    }

    /// How many resources of the type are not deleted.
    pub fn count(&self, resource_type: ResourceType) -> usize {
        self.resources(resource_type).count()
    }

    /// The lines of an export: what has `lastUpdated >= since` (everything without a `since`), then the pushed lines.
    pub fn lines(&self, resource_type: ResourceType, since: Option<DateTime<Utc>>) -> Vec<Arc<str>> {
        let Some(stock) = self.stocks.get(&resource_type) else { return Vec::new() };
        let changed = stock.entries.iter().filter(|entry| since.is_none_or(|since| entry.last_updated >= since));
        changed.filter_map(Entry::line).chain(&stock.pushed).cloned().collect()
    }

    /// What was deleted at or after `since` and has not come back, in the order of time.
    pub fn deleted(&self, resource_type: ResourceType, since: DateTime<Utc>) -> Vec<Deletion> {
        let Some(stock) = self.stocks.get(&resource_type) else { return Vec::new() };
        let gone = stock.entries.iter().filter(|entry| !entry.is_live() && entry.last_updated >= since);
        let mut deletions: Vec<_> = gone
            .map(|entry| Deletion { resource_type, id: entry.id.to_string(), at: Some(entry.last_updated) })
            .collect();
        deletions.sort_by_key(|deletion| deletion.at);
        deletions
    }

    fn stock(&mut self, resource_type: ResourceType) -> (&mut Stock, DateTime<Utc>) {
        (self.stocks.entry(resource_type).or_default(), self.now)
    }
}

/// An instant as this server writes it: UTC, three digits of the second.
pub fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The resources of one type, in the order of their creation.
#[derive(Clone, Debug, Default)]
struct Stock {
    places: HashMap<Arc<str>, usize>,
    entries: Vec<Entry>,
    pushed: Vec<Arc<str>>,
}

impl Stock {
    /// The entry of an id; a new one, of version 0, where there is none.
    fn entry(&mut self, id: &str) -> &mut Entry {
        let place = self.places.get(id).copied().unwrap_or_else(|| {
            let (id, place) = (Arc::<str>::from(id), self.entries.len());
            self.entries.push(Entry { id: id.clone(), version: 0, last_updated: START, state: State::Deleted });
            self.places.insert(id, place);
            place
        });
        &mut self.entries[place]
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

fn line(resource_type: ResourceType, id: &str, version: u64, last_updated: DateTime<Utc>, mut body: Body) -> String {
    let mut said = body.remove("meta").and_then(|meta| Body::read(&meta)).unwrap_or_default();
    for ours in ["versionId", "lastUpdated"] {
        said.remove(ours);
    }
    for ours in ["resourceType", "id"] {
        body.remove(ours);
    }
    let meta = Body::from([("versionId", text(&version.to_string())), ("lastUpdated", text(&instant(last_updated)))]);
    let head = Body::from([
        ("resourceType", text(resource_type.as_str())),
        ("id", text(id)),
        ("meta", meta.and(said).to_string()),
    ]);
    head.and(body).to_string()
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
    fn each_put_is_the_next_version_and_says_when() {
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
    fn what_a_body_says_of_its_meta_is_sent_but_for_the_version() {
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
    fn a_change_at_the_very_instant_of_since_is_sent_again() {
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
    fn a_deletion_is_told_until_the_resource_comes_back_with_a_higher_version() {
        let mut world = World::new();
        world.put(PATIENT, "p1", json!({}));
        let since = world.now();
        assert!(world.delete(PATIENT, "p1"));
        assert!(!world.delete(PATIENT, "p1"), "it is gone already");
        assert_eq!(world.lines(PATIENT, None).len(), 0);
        assert_eq!(world.deleted(PATIENT, since).len(), 1);
        assert_eq!(world.put(PATIENT, "p1", json!({})), 3);
        assert_eq!(world.deleted(PATIENT, since), vec![]);
    }

    #[test]
    fn a_pushed_line_comes_with_every_export_until_it_is_forgotten() {
        let mut world = World::new();
        world.push_line(PATIENT, "{broken");
        assert_eq!(world.lines(PATIENT, Some(world.now() + TimeDelta::days(1))), vec![Arc::from("{broken")]);
        world.clear_pushed_lines();
        assert_eq!(world.lines(PATIENT, None).len(), 0);
    }
}
