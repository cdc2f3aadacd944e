//! Reads what a neighbouring version has written: MessagePack arrays in which a struct may have more fields than this build
//! knows (they are skipped, at any depth), or fewer (serde's `default` fills them). rmp-serde refuses the first on its own.
//! Must never panic, whatever the bytes.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

/// How deep a value may be nested, the same as serde_json's limit: a peer's brackets must not use up a thread's stack.
const DEPTH_MAX: usize = 128;

/// Reads a value from its MessagePack encoding.
pub(crate) fn from_slice<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(DEPTH_MAX);
    T::deserialize(Lenient(&mut deserializer))
}

/// Wraps each of serde's roles, so that every sequence passes through `visit_seq` below.
struct Lenient<T>(T);

/// As `Lenient`, of a struct without fields: one that has got fields since is still it.
struct LenientUnit<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for LenientUnit<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<V::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        self.0.visit_unit()
    }
}

macro_rules! visit {
    ($($method:ident($($arg:ident: $type:ty)?)),* $(,)?) => {$(
        fn $method<E: Error>(self $(, $arg: $type)?) -> Result<V::Value, E> {
            self.0.$method($($arg)?)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Lenient<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<V::Value, A::Error> {
        let value = self.0.visit_seq(Lenient(&mut seq))?;
        // What a newer version has appended.
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(value)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Lenient(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(Lenient(data))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Lenient(deserializer))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Lenient(deserializer))
    }

    visit! {
        visit_none(), visit_unit(), visit_bool(v: bool), visit_char(v: char),
        visit_i8(v: i8), visit_i16(v: i16), visit_i32(v: i32), visit_i64(v: i64), visit_i128(v: i128),
        visit_u8(v: u8), visit_u16(v: u16), visit_u32(v: u32), visit_u64(v: u64), visit_u128(v: u128),
        visit_f32(v: f32), visit_f64(v: f64),
        visit_str(v: &str), visit_borrowed_str(v: &'de str), visit_string(v: String),
        visit_bytes(v: &[u8]), visit_borrowed_bytes(v: &'de [u8]), visit_byte_buf(v: Vec<u8>),
    }
}

macro_rules! deserialize {
    ($($method:ident($($arg:ident: $type:ty),*)),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method($($arg,)* Lenient(visitor))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Lenient<D> {
    type Error = D::Error;

    deserialize! {
        deserialize_any(), deserialize_bool(), deserialize_char(), deserialize_str(), deserialize_string(),
        deserialize_i8(), deserialize_i16(), deserialize_i32(), deserialize_i64(), deserialize_i128(),
        deserialize_u8(), deserialize_u16(), deserialize_u32(), deserialize_u64(), deserialize_u128(),
        deserialize_f32(), deserialize_f64(), deserialize_bytes(), deserialize_byte_buf(), deserialize_option(),
        deserialize_unit(), deserialize_newtype_struct(name: &'static str), deserialize_seq(), deserialize_tuple(len: usize),
        deserialize_tuple_struct(name: &'static str, len: usize), deserialize_map(),
        deserialize_struct(name: &'static str, fields: &'static [&'static str]),
        deserialize_enum(name: &'static str, variants: &'static [&'static str]),
        deserialize_identifier(), deserialize_ignored_any(),
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit_struct(name, LenientUnit(visitor))
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Lenient<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Lenient(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.0.next_element_seed(Lenient(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        self.0.next_key_seed(Lenient(seed))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(Lenient(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Lenient<A> {
    type Error = A::Error;
    type Variant = Lenient<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        self.0.variant_seed(Lenient(seed)).map(|(value, variant)| (value, Lenient(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Lenient<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.0.newtype_variant_seed(Lenient(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(len, Lenient(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.struct_variant(fields, Lenient(visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Unit;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Old {
        a: u32,
        inner: Vec<OldInner>,
        by_name: BTreeMap<String, OldInner>,
        choice: Option<OldChoice>,
        unit: Unit,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct OldInner {
        x: String,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum OldChoice {
        None,
        Struct { x: i64 },
        Tuple(u8, u8),
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct NewUnit {
        #[serde(default)]
        added: Option<String>,
        #[serde(default)]
        more: u8,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct New {
        a: u32,
        inner: Vec<NewInner>,
        by_name: BTreeMap<String, NewInner>,
        choice: Option<NewChoice>,
        unit: NewUnit,
        #[serde(default)]
        added: Vec<NewInner>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct NewInner {
        x: String,
        #[serde(default)]
        y: u64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum NewChoice {
        None,
        Struct {
            x: i64,
            #[serde(default)]
            y: Option<bool>,
        },
        Tuple(u8, u8, #[serde(default)] f64),
    }

    fn old(choice: OldChoice) -> Old {
        let inner = |x: &str| OldInner { x: x.into() };
        Old {
            a: 7,
            inner: vec![inner("one"), inner("two")],
            by_name: [("k".into(), inner("v"))].into(),
            choice: Some(choice),
            unit: Unit,
        }
    }

    fn new(choice: NewChoice) -> New {
        let inner = |x: &str| NewInner { x: x.into(), y: 9 };
        New {
            a: 7,
            inner: vec![inner("one"), inner("two")],
            by_name: [("k".into(), inner("v"))].into(),
            choice: Some(choice),
            unit: NewUnit { added: Some("text".into()), more: 1 },
            added: vec![inner("three")],
        }
    }

    #[test]
    fn appended_fields_are_skipped_at_any_depth() {
        for (written, read) in [
            (NewChoice::None, OldChoice::None),
            (NewChoice::Struct { x: -1, y: Some(true) }, OldChoice::Struct { x: -1 }),
            (NewChoice::Tuple(1, 2, 3.5), OldChoice::Tuple(1, 2)),
        ] {
            let bytes = rmp_serde::to_vec(&new(written)).expect("encodes");
            assert_eq!(from_slice::<Old>(&bytes).expect("readable"), old(read));
            assert!(rmp_serde::from_slice::<Old>(&bytes).is_err(), "or this file is not needed any more");
        }
    }

    #[test]
    fn missing_fields_are_filled_with_their_defaults() {
        let bytes = rmp_serde::to_vec(&old(OldChoice::Struct { x: 5 })).expect("encodes");
        let read = from_slice::<New>(&bytes).expect("readable");
        assert_eq!(read.choice, Some(NewChoice::Struct { x: 5, y: None }));
        assert_eq!((read.inner[1].x.as_str(), read.inner[1].y), ("two", 0));
        assert_eq!((read.unit, read.added), (NewUnit::default(), vec![]));
    }

    #[test]
    fn a_field_of_another_type_is_an_error() {
        let bytes = rmp_serde::to_vec(&("text", 1)).expect("encodes");
        assert!(from_slice::<(u32, u32)>(&bytes).is_err());
    }

    #[test]
    fn brackets_without_end_are_an_error_and_use_up_no_stack() {
        // Arrays of one element, and an appended field made of them.
        for start in [vec![], vec![0x92, 1]] {
            let bytes: Vec<u8> = start.into_iter().chain(std::iter::repeat_n(0x91, 1 << 20)).collect();
            assert!(from_slice::<(u8,)>(&bytes).is_err());
            assert!(from_slice::<IgnoredAny>(&bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = from_slice::<New>(&bytes);
            let _ = from_slice::<Old>(&bytes);
        }

        #[test]
        fn what_rmp_serde_reads_is_read_the_same(text in ".*", numbers in prop::collection::vec(any::<i64>(), 0..20), float in any::<f32>(), maybe in any::<Option<u128>>()) {
            type All = (String, Vec<i64>, f32, Option<u128>, serde_bytes::ByteBuf, (), char);
            let all: All = (text, numbers, float, maybe, serde_bytes::ByteBuf::from(vec![1, 255]), (), 'x');
            let bytes = rmp_serde::to_vec(&all).expect("encodes");
            let ours = from_slice::<All>(&bytes).expect("readable");
            let theirs = rmp_serde::from_slice::<All>(&bytes).expect("readable");
            prop_assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
            prop_assert_eq!(format!("{ours:?}"), format!("{all:?}"));
        }
    }
}
