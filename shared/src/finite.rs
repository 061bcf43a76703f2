//! Refuses floats that JSON cannot carry.
//!
//! JSON has no NaN and no infinity: serde_json writes them as `null`, which may decode as something
//! else (`Some(NaN)` becomes `None`). A `null` in the encoded bytes is the only trace of such a
//! float, so only values whose bytes contain the word are walked a second time, by a serializer
//! that writes nothing and names the float.

use std::fmt;

use serde::{
    Serialize,
    ser::{self, Serializer},
};

/// A float that is NaN or infinite, and the path of the field that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotFinite {
    path: String,
    value: &'static str,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, value } = self;
        write!(
            f,
            "{path} is {value}, but only finite floats travel (hint: use an Option, with None for no number)"
        )
    }
}

impl std::error::Error for NotFinite {}

/// Checks a value that was encoded as `json`. The path of a refused float begins with `name`.
///
/// Costs a search for `null`, and a second walk through values that contain the word.
///
/// # Errors
/// If the value contains a float that is NaN or infinite.
pub(crate) fn check(name: &str, value: &(impl Serialize + ?Sized), json: &[u8]) -> Result<(), NotFinite> {
    if memchr::memmem::find(json, b"null").is_none() {
        return Ok(());
    }
    match value.serialize(Finder) {
        Err(Found::Float { mut path, value }) => {
            path.insert_str(0, name);
            Err(NotFinite { path, value })
        }
        // The value was encoded before, so an error of its own `Serialize` has been told already.
        Ok(()) | Err(Found::Other) => Ok(()),
    }
}

/// Ends the walk through a value.
#[derive(Debug)]
enum Found {
    Float { path: String, value: &'static str },
    Other,
}

impl Found {
    /// Puts a part in front of the path.
    fn below(self, part: impl FnOnce() -> String) -> Self {
        match self {
            Self::Float { path, value } => Self::Float { path: part() + &path, value },
            Self::Other => Self::Other,
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the search for floats that are not finite ended")
    }
}

impl std::error::Error for Found {}

impl ser::Error for Found {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Other
    }
}

/// A serializer that writes nothing and fails at the first float that is not finite.
#[derive(Debug, Clone, Copy)]
struct Finder;

fn float(value: f64) -> Result<(), Found> {
    let value = match value {
        finite if finite.is_finite() => return Ok(()),
        nan if nan.is_nan() => "NaN",
        positive if positive > 0.0 => "infinite",
        _ => "negatively infinite",
    };
    Err(Found::Float { path: String::new(), value })
}

/// Methods that take a value without floats.
macro_rules! no_floats {
    ($($method:ident($($argument:ty),*);)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<(), Found> {
            Ok(())
        })*
    };
}

impl Serializer for Finder {
    type Ok = ();
    type Error = Found;
    type SerializeSeq = Elements;
    type SerializeTuple = Elements;
    type SerializeTupleStruct = Elements;
    type SerializeTupleVariant = Elements;
    type SerializeMap = Entries;
    type SerializeStruct = Fields;
    type SerializeStructVariant = Fields;

    no_floats! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    fn serialize_f32(self, value: f32) -> Result<(), Found> {
        float(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Found> {
        float(value)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Found> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Found> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Found> {
        value.serialize(self).map_err(|found| found.below(|| format!(".{variant}")))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Elements, Found> {
        Ok(Elements::default())
    }

    fn serialize_tuple(self, _: usize) -> Result<Elements, Found> {
        Ok(Elements::default())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Elements, Found> {
        Ok(Elements::default())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Elements, Found> {
        Ok(Elements { variant: Some(variant), next: 0 })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries, Found> {
        Ok(Entries::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields, Found> {
        Ok(Fields { variant: None })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Fields, Found> {
        Ok(Fields { variant: Some(variant) })
    }
}

/// The name of an enum's variant, as a part of a path.
fn variant_part(variant: Option<&'static str>) -> String {
    variant.map_or_else(String::new, |variant| format!(".{variant}"))
}

/// The elements of a sequence or tuple.
#[derive(Debug, Default)]
struct Elements {
    variant: Option<&'static str>,
    next: usize,
}

impl Elements {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Found> {
        let (variant, place) = (self.variant, self.next);
        self.next += 1;
        value.serialize(Finder).map_err(|found| found.below(|| format!("{}[{place}]", variant_part(variant))))
    }
}

/// Implements a trait of serde whose one method takes a sequence's next element.
macro_rules! elements {
    ($($interface:ident::$method:ident;)*) => {
        $(impl ser::$interface for Elements {
            type Ok = ();
            type Error = Found;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Found> {
                self.element(value)
            }

            fn end(self) -> Result<(), Found> {
                Ok(())
            }
        })*
    };
}

elements! {
    SerializeSeq::serialize_element;
    SerializeTuple::serialize_element;
    SerializeTupleStruct::serialize_field;
    SerializeTupleVariant::serialize_field;
}

/// The entries of a map.
#[derive(Debug, Default)]
struct Entries {
    key: String,
}

/// A map's key as a part of a path: `["name"]`, `[7]`.
fn key_part<K: Serialize + ?Sized>(key: &K) -> String {
    format!("[{}]", serde_json::to_string(key).unwrap_or_default())
}

impl ser::SerializeMap for Entries {
    type Ok = ();
    type Error = Found;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Found> {
        self.key = key_part(key);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Found> {
        value.serialize(Finder).map_err(|found| found.below(|| std::mem::take(&mut self.key)))
    }

    fn serialize_entry<K: Serialize + ?Sized, V: Serialize + ?Sized>(
        &mut self,
        key: &K,
        value: &V,
    ) -> Result<(), Found> {
        value.serialize(Finder).map_err(|found| found.below(|| key_part(key)))
    }

    fn end(self) -> Result<(), Found> {
        Ok(())
    }
}

/// The fields of a struct.
#[derive(Debug)]
struct Fields {
    variant: Option<&'static str>,
}

impl Fields {
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Found> {
        let variant = self.variant;
        value.serialize(Finder).map_err(|found| found.below(|| format!("{}.{name}", variant_part(variant))))
    }
}

/// Implements a trait of serde whose one method takes a struct's next field.
macro_rules! fields {
    ($($interface:ident;)*) => {
        $(impl ser::$interface for Fields {
            type Ok = ();
            type Error = Found;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Found> {
                self.field(name, value)
            }

            fn end(self) -> Result<(), Found> {
                Ok(())
            }
        })*
    };
}

fields! {
    SerializeStruct;
    SerializeStructVariant;
}

#[cfg(test)]
mod tests;
