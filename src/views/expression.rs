//! The value of a view's column: a path from a table's columns to a value without nesting, and how each dialect writes
//! it.
//!
//! If an element on the path is missing, the value is NULL; no data makes a statement fail.

use super::Dialect;

#[derive(Clone, Debug)]
pub enum Expression {
    /// A column of the table, or the item that a row stands for.
    Column(&'static str),
    Member(Box<Expression>, &'static str),
    /// The first item of a list.
    First(Box<Expression>),
    /// The items of a list that meet a condition.
    Where(Box<Expression>, Condition),
    /// The extensions of the element that has this `_fid`.
    ExtensionsOf(Box<Expression>),
    /// The first that is not NULL.
    OneOf(Vec<Expression>),
    /// The id in a reference of the resource, if it refers to this type.
    IdOf {
        reference: &'static str,
        resource_type: &'static str,
    },
    /// A list of text, with blanks between.
    Joined(Box<Expression>),
    Text(Box<Expression>),
    /// True where there is a value, else NULL.
    Given(Box<Expression>),
}

/// What an item must be.
#[derive(Clone, Copy, Debug)]
pub enum Condition {
    /// The member has this value.
    Is(&'static str, &'static str),
    /// The `CodeableConcept` in the member has a coding with this code.
    HasCode(&'static str, &'static str),
}

pub fn column(name: &'static str) -> Expression {
    Expression::Column(name)
}

pub fn one_of<const N: usize>(expressions: [Expression; N]) -> Expression {
    Expression::OneOf(expressions.into())
}

impl Expression {
    pub fn member(self, name: &'static str) -> Self {
        Self::Member(Box::new(self), name)
    }

    pub fn first(self) -> Self {
        Self::First(Box::new(self))
    }

    pub fn only(self, condition: Condition) -> Self {
        Self::Where(Box::new(self), condition)
    }

    pub fn joined(self) -> Self {
        Self::Joined(Box::new(self))
    }

    pub fn text(self) -> Self {
        Self::Text(Box::new(self))
    }

    pub fn given(self) -> Self {
        Self::Given(Box::new(self))
    }

    /// The extension with this URL of the element that has this `_fid`.
    pub fn extension(self, url: &'static str) -> Self {
        Self::ExtensionsOf(Box::new(self)).only(Condition::Is("url", url)).first()
    }

    pub fn sql(&self, dialect: Dialect) -> String {
        let sql = |expression: &Self| expression.sql(dialect);
        match (self, dialect) {
            (Self::Column(name), _) => (*name).to_owned(),
            (Self::Member(of, name), _) => format!("{}.{name}", sql(of)),
            (Self::First(list), Dialect::Duckdb) => format!("{}[1]", sql(list)),
            // Not list[0]: under ANSI, the default since Spark 4, that fails where the list is empty.
            (Self::First(list), Dialect::Spark) => format!("get({}, 0)", sql(list)),
            (Self::Where(list, condition), Dialect::Duckdb) => {
                format!("list_filter({}, lambda x: {})", sql(list), condition.sql(dialect))
            }
            (Self::Where(list, condition), Dialect::Spark) => {
                format!("filter({}, x -> {})", sql(list), condition.sql(dialect))
            }
            (Self::ExtensionsOf(fid), Dialect::Duckdb) => format!("_extension[{}]", sql(fid)),
            (Self::ExtensionsOf(fid), Dialect::Spark) => format!("try_element_at(_extension, {})", sql(fid)),
            (Self::OneOf(values), _) => {
                let values: Vec<_> = values.iter().map(sql).collect();
                // In brackets, so that a member of it can be asked for.
                format!("(coalesce({}))", values.join(", "))
            }
            (Self::IdOf { reference, resource_type }, _) => {
                format!("CASE WHEN __{reference}_type = '{resource_type}' THEN __{reference}_id END")
            }
            (Self::Joined(list), Dialect::Duckdb) => format!("array_to_string({}, ' ')", sql(list)),
            (Self::Joined(list), Dialect::Spark) => format!("array_join({}, ' ')", sql(list)),
            (Self::Text(value), _) => format!("CAST({} AS STRING)", sql(value)),
            (Self::Given(value), _) => format!("CASE WHEN {} IS NOT NULL THEN true END", sql(value)),
        }
    }
}

impl Condition {
    fn sql(self, dialect: Dialect) -> String {
        match (self, dialect) {
            (Self::Is(member, value), _) => format!("x.{member} = '{value}'"),
            (Self::HasCode(member, code), Dialect::Duckdb) => {
                format!("len(list_filter(x.{member}.coding, lambda y: y.code = '{code}')) > 0")
            }
            (Self::HasCode(member, code), Dialect::Spark) => {
                format!("exists(x.{member}.coding, y -> y.code = '{code}')")
            }
        }
    }
}
