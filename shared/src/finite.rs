//! The check that refuses floats that JSON cannot carry.
//!
//! JSON has no NaN and no infinity: serde_json writes them as `null`, which may decode as another
//! value (`Some(NaN)` becomes `None`). A `null` in the encoded bytes is the only trace of such a
//! float. So values whose bytes contain the word are serialized a second time, by a serializer that
//! writes nothing and names the float.

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
    match value.serialize(FiniteChecker) {
        Err(WalkError::Float { mut path, value }) => {
            path.insert_str(0, name);
            Err(NotFinite { path, value })
        }
        // The value was encoded before, so an error of its own `Serialize` was reported already.
        Ok(()) | Err(WalkError::Other) => Ok(()),
    }
}

/// The error that ends the walk through a value.
#[derive(Debug)]
enum WalkError {
    Float { path: String, value: &'static str },
    Other,
}

impl WalkError {
    /// Puts a part in front of the path.
    fn prefix_path(self, part: impl FnOnce() -> String) -> Self {
        match self {
            Self::Float { path, value } => Self::Float { path: part() + &path, value },
            Self::Other => Self::Other,
        }
    }
}

impl fmt::Display for WalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the search for floats that are not finite ended")
    }
}

impl std::error::Error for WalkError {}

impl ser::Error for WalkError {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Other
    }
}

/// A serializer that writes nothing and fails at the first float that is not finite.
#[derive(Debug, Clone, Copy)]
struct FiniteChecker;

fn check_float(value: f64) -> Result<(), WalkError> {
    let value = match value {
        finite if finite.is_finite() => return Ok(()),
        nan if nan.is_nan() => "NaN",
        positive if positive > 0.0 => "infinite",
        _ => "negatively infinite",
    };
    Err(WalkError::Float { path: String::new(), value })
}

/// Implements methods of a serializer for values without floats.
macro_rules! no_floats {
    ($($method:ident($($argument:ty),*);)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<(), WalkError> {
            Ok(())
        })*
    };
}

impl Serializer for FiniteChecker {
    type Ok = ();
    type Error = WalkError;
    type SerializeSeq = SequenceWalk;
    type SerializeTuple = SequenceWalk;
    type SerializeTupleStruct = SequenceWalk;
    type SerializeTupleVariant = SequenceWalk;
    type SerializeMap = MapWalk;
    type SerializeStruct = StructWalk;
    type SerializeStructVariant = StructWalk;

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

    fn serialize_f32(self, value: f32) -> Result<(), WalkError> {
        check_float(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), WalkError> {
        check_float(value)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), WalkError> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), WalkError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), WalkError> {
        value.serialize(self).map_err(|found| found.prefix_path(|| format!(".{variant}")))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<SequenceWalk, WalkError> {
        Ok(SequenceWalk::default())
    }

    fn serialize_tuple(self, _: usize) -> Result<SequenceWalk, WalkError> {
        Ok(SequenceWalk::default())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<SequenceWalk, WalkError> {
        Ok(SequenceWalk::default())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<SequenceWalk, WalkError> {
        Ok(SequenceWalk { variant: Some(variant), next: 0 })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<MapWalk, WalkError> {
        Ok(MapWalk::default())
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<StructWalk, WalkError> {
        Ok(StructWalk { variant: None })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<StructWalk, WalkError> {
        Ok(StructWalk { variant: Some(variant) })
    }
}

/// Returns the name of an enum's variant as a part of a path.
fn variant_part(variant: Option<&'static str>) -> String {
    variant.map_or_else(String::new, |variant| format!(".{variant}"))
}

/// The elements of a sequence or tuple.
#[derive(Debug, Default)]
struct SequenceWalk {
    variant: Option<&'static str>,
    next: usize,
}

impl SequenceWalk {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WalkError> {
        let (variant, place) = (self.variant, self.next);
        self.next += 1;
        value
            .serialize(FiniteChecker)
            .map_err(|found| found.prefix_path(|| format!("{}[{place}]", variant_part(variant))))
    }
}

/// Implements a trait of serde whose one method takes a sequence's next element.
macro_rules! elements {
    ($($interface:ident::$method:ident;)*) => {
        $(impl ser::$interface for SequenceWalk {
            type Ok = ();
            type Error = WalkError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WalkError> {
                self.element(value)
            }

            fn end(self) -> Result<(), WalkError> {
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
struct MapWalk {
    key: String,
}

/// Returns a map's key as a part of a path: `["name"]`, `[7]`.
fn key_part<K: Serialize + ?Sized>(key: &K) -> String {
    format!("[{}]", serde_json::to_string(key).unwrap_or_default())
}

impl ser::SerializeMap for MapWalk {
    type Ok = ();
    type Error = WalkError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), WalkError> {
        self.key = key_part(key);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), WalkError> {
        value.serialize(FiniteChecker).map_err(|found| found.prefix_path(|| std::mem::take(&mut self.key)))
    }

    fn serialize_entry<K: Serialize + ?Sized, V: Serialize + ?Sized>(
        &mut self,
        key: &K,
        value: &V,
    ) -> Result<(), WalkError> {
        value.serialize(FiniteChecker).map_err(|found| found.prefix_path(|| key_part(key)))
    }

    fn end(self) -> Result<(), WalkError> {
        Ok(())
    }
}

/// The fields of a struct.
#[derive(Debug)]
struct StructWalk {
    variant: Option<&'static str>,
}

impl StructWalk {
    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), WalkError> {
        let variant = self.variant;
        value
            .serialize(FiniteChecker)
            .map_err(|found| found.prefix_path(|| format!("{}.{name}", variant_part(variant))))
    }
}

/// Implements a trait of serde whose one method takes a struct's next field.
macro_rules! fields {
    ($($interface:ident;)*) => {
        $(impl ser::$interface for StructWalk {
            type Ok = ();
            type Error = WalkError;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), WalkError> {
                self.field(name, value)
            }

            fn end(self) -> Result<(), WalkError> {
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
