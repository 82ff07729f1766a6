//! A mapper makes the mapping of a document: it goes through it once as decoding by member names does, and notes where
//! each value ends up.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::{self, Write as _},
};

use super::{
    canonical::Quantity,
    derived_from::DerivedInput,
    head::{Head, Meta},
    mapping::{DerivedMapping, ItemsMapping, LineMapping, MemberMapping, Repetition, StructuresMapping, ValueInfo},
};
use crate::resource::{
    Shape,
    content_hash::HashTemplate,
    element::{Complex, Element, ElementContent, Special},
    json::{Document, Fragment, OutlineValues, TokenIndex, TokenKind},
};

/// `None` if the document is not a resource of the type, or if a member needs more than its column.
pub fn mapping(document: Document<'_>, values: &OutlineValues, shape: &Shape) -> Option<LineMapping> {
    Head::read(document, shape.resource_type).ok()?;
    let extension = shape.extension.as_deref()?;
    let member = |name| document.member(Document::ROOT, name);
    let meta = member("meta").map(|at| Meta::of(document, at)).unwrap_or_default();
    let by_name = NameOrder::through(document, shape.resource_type.as_str())?;
    let slots_left = Cell::new(MAX_SLOTS_PER_VALUE * (values.count() + 1));
    let mapper = Mapper { document, values, by_name: &by_name, slots_left };
    let root = mapper.structures(&[Some(Document::ROOT)], &shape.elements)?;
    let derived = root.members.iter().map(|of| mapper.derived(of.element, &shape.elements[of.element]));
    let extensions: Vec<_> = by_name.carriers.iter().flat_map(|(_, list)| document.items(*list)).map(Some).collect();
    let carrier = |(fid, list): &(i32, TokenIndex)| (*fid, document.items(*list).count());
    let primitive_ext = by_name.primitive_ext.iter().map(|(path, at)| (path.clone(), values.fragment(document, *at)));
    let mut of_values = vec![ValueInfo::default(); values.count()];
    for (order, (at, path)) in by_name.values.iter().enumerate() {
        if let Some(number) = values.number(*at) {
            of_values[number] = ValueInfo { order, path: path.clone() };
        }
    }
    Some(LineMapping {
        resource_type: values.number(member("resourceType")?)?,
        id: values.number(member("id")?)?,
        meta: meta.in_outline(values),
        hash: HashTemplate::of(document, values),
        derived: derived.collect::<Option<_>>()?,
        root,
        extensions: mapper.complex(extension, &extensions)?,
        carriers: by_name.carriers.iter().map(carrier).collect(),
        contained: match member("contained") {
            Some(list) => Some(mapper.contained(list)?),
            None => None,
        },
        primitive_ext: primitive_ext.collect(),
        values: of_values,
    })
}

struct Mapper<'line> {
    document: Document<'line>,
    values: &'line OutlineValues,
    by_name: &'line NameOrder<'line>,
    /// How many more values the mapping may have, nulls included.
    slots_left: Cell<usize>,
}

/// A structure of a list has a null for each member that only another one has. Lists of which that is nearly all would
/// make mappings that are much larger than their lines.
const MAX_SLOTS_PER_VALUE: usize = 16;

/// The structures and values of a document, in the order of decoding by member names.
struct NameOrder<'line> {
    document: Document<'line>,
    /// Of the structure that it is in; at its end that of the resource.
    path: String,
    /// The element number of each structure.
    fids: BTreeMap<TokenIndex, i32>,
    /// Element numbers, and the list of extensions.
    carriers: Vec<(i32, TokenIndex)>,
    /// `Patient.birthDate`, and the value of `_birthDate`.
    primitive_ext: Vec<(String, TokenIndex)>,
    /// With their paths.
    values: Vec<(TokenIndex, String)>,
    /// Extensions that are not written yet, and the path of their carrier.
    waiting: VecDeque<(i32, TokenIndex, String)>,
    is_too_long: bool,
}

/// A path is longer only where a name is none of FHIR, and each value keeps its path.
const MAX_PATH_BYTES: usize = 1024;

impl Mapper<'_> {
    /// `objects` are the structures of a column, `None` for a null.
    fn structures(&self, objects: &[Option<TokenIndex>], elements: &[Element]) -> Option<StructuresMapping> {
        let mut members: Vec<(usize, Vec<Option<TokenIndex>>)> = Vec::new();
        for (place, object) in objects.iter().enumerate() {
            let Some(object) = object else { continue };
            for (element, value) in self.members(*object, elements)? {
                let known = members.iter_mut().find(|(known, _)| *known == element);
                if let Some((_, values)) = known {
                    values[place] = Some(value);
                    continue;
                }
                self.slots_left.set(self.slots_left.get().checked_sub(objects.len())?);
                let mut values = vec![None; objects.len()];
                values[place] = Some(value);
                members.push((element, values));
            }
        }
        let members = members.into_iter().map(|(index, values)| self.member(index, &elements[index], &values));
        let fid = |object: &Option<TokenIndex>| object.map_or(0, |object| self.by_name.fids[&object]);
        let present: Vec<_> = objects.iter().map(Option::is_some).collect();
        Some(StructuresMapping {
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
                ("resourceType" | "id" | "contained", _) if object == Document::ROOT => {}
                ("_id", _) if object == Document::ROOT && self.document.kind(value) == TokenKind::Object => {}
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

    fn member(&self, index: usize, element: &Element, values: &[Option<TokenIndex>]) -> Option<MemberMapping> {
        if !element.repeated {
            return Some(MemberMapping { element: index, many: Repetition::One, items: self.items(element, values)? });
        }
        let is_list = |value: &Option<TokenIndex>| value.is_none_or(|at| self.document.kind(at) == TokenKind::Array);
        if !values.iter().all(is_list) {
            return None;
        }
        let lengths = values.iter().map(|value| value.map(|at| self.document.items(at).count())).collect();
        let items: Vec<_> = values.iter().flatten().flat_map(|at| self.document.items(*at)).map(Some).collect();
        Some(MemberMapping { element: index, many: Repetition::Lists(lengths), items: self.items(element, &items)? })
    }

    fn items(&self, element: &Element, values: &[Option<TokenIndex>]) -> Option<ItemsMapping> {
        match &element.content {
            ElementContent::Primitive(_) => {
                let number = |value: &Option<TokenIndex>| match value {
                    // In a list it means that the item has extensions and no value.
                    Some(at) if element.repeated && self.document.kind(*at) == TokenKind::Null => Some(None),
                    Some(at) => self.values.number(*at).map(Some),
                    None => Some(None),
                };
                values.iter().map(number).collect::<Option<_>>().map(ItemsMapping::Leaf)
            }
            ElementContent::Complex(complex) => self.complex(complex, values).map(ItemsMapping::Complex),
        }
    }

    fn complex(&self, complex: &Complex, values: &[Option<TokenIndex>]) -> Option<StructuresMapping> {
        if values.iter().flatten().any(|at| self.document.kind(*at) != TokenKind::Object) {
            return None;
        }
        let mut mapping = self.structures(values, &complex.elements)?;
        if complex.special == Special::Quantity {
            let quantity = |at: TokenIndex| Quantity::of(self.document, at).in_outline(self.values);
            mapping.quantities = values.iter().map(|value| value.map(quantity)).collect();
        }
        Some(mapping)
    }

    fn contained(&self, list: TokenIndex) -> Option<Vec<Fragment>> {
        self.all_objects(list)?;
        Some(self.document.items(list).map(|item| self.values.fragment(self.document, item)).collect())
    }

    fn derived(&self, index: usize, element: &Element) -> Option<DerivedMapping> {
        let at = self.document.member(Document::ROOT, element.name)?;
        let values = self.by_name.values.iter().map(|(value, _)| *value);
        let mut of_element = values.rev().filter(|value| self.document.is_in(*value, at));
        Some(DerivedMapping {
            element: index,
            path: format!("{}.{}", self.by_name.path, element.name),
            input: DerivedInput::of(self.document, at, element).in_outline(self.values),
            leaf: self.values.number(at),
            last: of_element.find_map(|value| self.values.number(value)).unwrap_or_default(),
        })
    }
}

impl<'line> NameOrder<'line> {
    /// `None` if a path is too long.
    fn through(document: Document<'line>, root: &str) -> Option<Self> {
        let mut order = Self {
            document,
            path: root.to_owned(),
            fids: BTreeMap::new(),
            carriers: Vec::new(),
            primitive_ext: Vec::new(),
            values: Vec::new(),
            waiting: VecDeque::new(),
            is_too_long: false,
        };
        order.structure(Document::ROOT, false);
        (!order.is_too_long).then_some(order)
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
                    self.waiting.push_back((fid, value, self.path.clone()));
                    if !is_in_extension {
                        self.extensions();
                    }
                }
                name => match name.strip_prefix('_') {
                    Some(bare) => self.below(format_args!(".{bare}"), |order| {
                        order.primitive_ext.push((order.path.clone(), value));
                    }),
                    None => self.below(format_args!(".{name}"), |order| order.value(value, is_in_extension)),
                },
            }
        }
    }

    /// As `ExtensionColumn::write` does it.
    fn extensions(&mut self) {
        while let Some((fid, list, path)) = self.waiting.pop_front() {
            self.carriers.push((fid, list));
            let outside = std::mem::replace(&mut self.path, path);
            self.below(format_args!(".extension"), |order| order.items(list, true));
            self.path = outside;
        }
    }

    fn value(&mut self, at: TokenIndex, is_in_extension: bool) {
        match self.document.kind(at) {
            TokenKind::Object => self.structure(at, is_in_extension),
            TokenKind::Array => self.items(at, is_in_extension),
            _ => self.values.push((at, self.path.clone())),
        }
    }

    fn items(&mut self, list: TokenIndex, is_in_extension: bool) {
        for (index, item) in self.document.items(list).enumerate() {
            self.below(format_args!("[{index}]"), |order| order.value(item, is_in_extension));
        }
    }

    fn below(&mut self, step: fmt::Arguments<'_>, go: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        // Writing to a String cannot fail.
        let _ = self.path.write_fmt(step);
        if self.path.len() <= MAX_PATH_BYTES {
            go(self);
        } else {
            self.is_too_long = true;
        }
        self.path.truncate(length);
    }
}
