//! A planner makes the plan of a document: it goes the way by the names once, and notes where each value ends up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    canonical::Quantity,
    derived::Source,
    issues,
    plan::{DerivedPlan, ItemsPlan, ManyPlan, MemberPlan, StructuresPlan},
};
use crate::resource::{
    element::{Complex, Element, ElementContent, Special},
    json::{Document, OutlineValues, Part, TokenIndex, TokenKind},
};

pub struct Planner<'line> {
    pub document: Document<'line>,
    pub values: &'line OutlineValues,
    pub way: &'line Way<'line>,
}

/// The way by the names: what it meets of a document, in its order.
pub struct Way<'line> {
    document: Document<'line>,
    root: &'static str,
    /// The element number of each structure.
    pub fids: BTreeMap<TokenIndex, i32>,
    /// Element numbers, and the list of extensions.
    pub carriers: Vec<(i32, TokenIndex)>,
    /// `Patient.birthDate`, and the value of `_birthDate`.
    pub primitive_ext: Vec<(String, TokenIndex)>,
    pub values: Vec<TokenIndex>,
    /// Extensions that are not written yet.
    waiting: VecDeque<(i32, TokenIndex)>,
}

impl Planner<'_> {
    /// `objects` are the structures of a column, `None` for a null.
    pub fn structures(&self, objects: &[Option<TokenIndex>], elements: &[Element]) -> Option<StructuresPlan> {
        let mut members: Vec<(usize, Vec<Option<TokenIndex>>)> = Vec::new();
        for (place, object) in objects.iter().enumerate() {
            let Some(object) = object else { continue };
            for (element, value) in self.members(*object, elements)? {
                let known = members.iter().position(|(known, _)| *known == element);
                let known = known.unwrap_or_else(|| {
                    members.push((element, vec![None; objects.len()]));
                    members.len() - 1
                });
                members[known].1[place] = Some(value);
            }
        }
        let members = members.into_iter().map(|(index, values)| self.member(index, &elements[index], &values));
        let fid = |object: &Option<TokenIndex>| object.map_or(0, |object| self.way.fids[&object]);
        let present: Vec<_> = objects.iter().map(Option::is_some).collect();
        Some(StructuresPlan {
            fids: objects.iter().map(fid).collect(),
            present: if present.contains(&false) { present } else { Vec::new() },
            members: members.collect::<Option<_>>()?,
            quantities: Vec::new(),
        })
    }

    /// The elements and values of an object. `None` if a member belongs to no element, or is a second one of its kind.
    fn members(&self, object: TokenIndex, elements: &[Element]) -> Option<Vec<(usize, TokenIndex)>> {
        let mut members: Vec<(usize, TokenIndex)> = Vec::new();
        let mut taken = BTreeSet::new();
        for (name, value) in self.document.members(object) {
            let name = Some(name).filter(|name| self.document.kind(*name) == TokenKind::String)?;
            let name = self.document.text(name);
            let element = elements.iter().position(|element| element.name == name);
            let choice = element.and_then(|index| elements[index].choice);
            if !taken.insert(name) || choice.is_some_and(|choice| !taken.insert(choice)) {
                return None;
            }
            match (name, element) {
                ("resourceType" | "id" | "_id" | "contained", _) if object == Document::ROOT => {}
                ("extension", _) => self.all_objects(value)?,
                (_, Some(element)) => members.push((element, value)),
                _ => self.primitive_ext(name, value, elements)?,
            }
        }
        Some(members)
    }

    fn primitive_ext(&self, name: &str, at: TokenIndex, elements: &[Element]) -> Option<()> {
        let bare = name.strip_prefix('_')?;
        let element = elements.iter().find(|element| element.name == bare)?;
        let expected = if element.repeated { TokenKind::Array } else { TokenKind::Object };
        let is_right = self.document.kind(at) == expected && matches!(element.content, ElementContent::Primitive(_));
        is_right.then_some(())
    }

    fn all_objects(&self, list: TokenIndex) -> Option<()> {
        let is_object = |item| self.document.kind(item) == TokenKind::Object;
        let is_list = self.document.kind(list) == TokenKind::Array;
        (is_list && self.document.items(list).all(is_object)).then_some(())
    }

    fn member(&self, index: usize, element: &Element, values: &[Option<TokenIndex>]) -> Option<MemberPlan> {
        if !element.repeated {
            return Some(MemberPlan { element: index, many: ManyPlan::One, items: self.items(element, values)? });
        }
        let is_list = |value: &Option<TokenIndex>| value.is_none_or(|at| self.document.kind(at) == TokenKind::Array);
        if !values.iter().all(is_list) {
            return None;
        }
        let lengths = values.iter().map(|value| value.map(|at| self.document.items(at).count())).collect();
        let items: Vec<_> = values.iter().flatten().flat_map(|at| self.document.items(*at)).map(Some).collect();
        Some(MemberPlan { element: index, many: ManyPlan::Lists(lengths), items: self.items(element, &items)? })
    }

    fn items(&self, element: &Element, values: &[Option<TokenIndex>]) -> Option<ItemsPlan> {
        match &element.content {
            ElementContent::Primitive(_) => {
                let number = |value: &Option<TokenIndex>| match value {
                    // In a list it means that the item has extensions and no value.
                    Some(at) if element.repeated && self.document.kind(*at) == TokenKind::Null => Some(None),
                    Some(at) => self.values.number(*at).map(Some),
                    None => Some(None),
                };
                values.iter().map(number).collect::<Option<_>>().map(ItemsPlan::Leaf)
            }
            ElementContent::Complex(complex) => self.complex(complex, values).map(ItemsPlan::Complex),
        }
    }

    pub fn complex(&self, complex: &Complex, values: &[Option<TokenIndex>]) -> Option<StructuresPlan> {
        if values.iter().flatten().any(|at| self.document.kind(*at) != TokenKind::Object) {
            return None;
        }
        let mut plan = self.structures(values, &complex.elements)?;
        if complex.special == Special::Quantity {
            let quantity = |at: TokenIndex| Quantity::of(self.document, at).planned(self.values);
            plan.quantities = values.iter().map(|value| value.map(quantity)).collect();
        }
        Some(plan)
    }

    pub fn contained(&self, list: TokenIndex) -> Option<Vec<Part>> {
        self.all_objects(list)?;
        Some(self.document.items(list).map(|item| self.values.part(self.document, item)).collect())
    }

    pub fn derived(&self, index: usize, element: &Element) -> Option<DerivedPlan> {
        let at = self.document.member(Document::ROOT, element.name)?;
        let of_element = self.way.values.iter().rev().find(|value| self.document.is_in(**value, at));
        Some(DerivedPlan {
            element: index,
            name: element.name,
            source: Source::of(self.document, at, element).planned(self.values),
            leaf: self.values.number(at),
            last: of_element.and_then(|value| self.values.number(*value)).unwrap_or_default(),
        })
    }
}

impl<'line> Way<'line> {
    pub fn through(document: Document<'line>, root: &'static str) -> Self {
        let mut way = Self {
            document,
            root,
            fids: BTreeMap::new(),
            carriers: Vec::new(),
            primitive_ext: Vec::new(),
            values: Vec::new(),
            waiting: VecDeque::new(),
        };
        way.structure(Document::ROOT, false);
        way
    }

    /// Recursion ends: a document has a limited depth.
    fn structure(&mut self, at: TokenIndex, is_in_extension: bool) {
        // A line has fewer structures than bytes, and fewer bytes than 2 GiB.
        let fid = i32::try_from(self.fids.len()).unwrap_or(i32::MAX);
        self.fids.insert(at, fid);
        for (name, value) in self.document.members(at) {
            match self.document.text(name) {
                "contained" if at == Document::ROOT => {}
                "extension" => {
                    self.waiting.push_back((fid, value));
                    if !is_in_extension {
                        self.extensions();
                    }
                }
                name if name.starts_with('_') => {
                    let path = issues::path(self.document, self.root, value);
                    let path = path.strip_suffix(name).map(|path| format!("{path}{}", &name[1..]));
                    self.primitive_ext.extend(path.map(|path| (path, value)));
                }
                _ => self.value(value, is_in_extension),
            }
        }
    }

    /// As `ExtensionColumn::write` does it.
    fn extensions(&mut self) {
        while let Some((fid, list)) = self.waiting.pop_front() {
            self.carriers.push((fid, list));
            for item in self.document.items(list) {
                self.value(item, true);
            }
        }
    }

    fn value(&mut self, at: TokenIndex, is_in_extension: bool) {
        match self.document.kind(at) {
            TokenKind::Object => self.structure(at, is_in_extension),
            TokenKind::Array => self.document.items(at).for_each(|item| self.value(item, is_in_extension)),
            _ => self.values.push(at),
        }
    }
}
