//! Quantities and ages.
