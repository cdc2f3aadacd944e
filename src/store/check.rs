//! Whether a transaction may be proposed: the store's limits. Pure; called by `raft` before anything is sent.

use std::collections::BTreeSet;

use super::{Compare, KEY_BYTES_MAX, Op, StoreError, TXN_BYTES_MAX, TXN_OPS_MAX, Txn};

/// What encoding adds to the key and value of an operation, at most.
const OP_OVERHEAD_BYTES: usize = 32;

/// Gives the size of the transaction in bytes, at most.
///
/// # Errors
/// It is too large, has an empty key, or writes a key twice.
pub(super) fn check(txn: &Txn) -> Result<usize, StoreError> {
    let too_large = |what: &str, actual, limit| Err(StoreError::TooLarge { what: what.to_owned(), actual, limit });
    let ops = txn.compares.len() + txn.success.len() + txn.failure.len();
    if ops > TXN_OPS_MAX {
        return too_large("number of compares and operations", ops, TXN_OPS_MAX);
    }
    let compared = |compare: &Compare| match compare {
        Compare::ModRevision { key, .. } | Compare::Exists { key } | Compare::Absent { key } => key.len(),
    };
    let mut bytes: usize = OP_OVERHEAD_BYTES * ops + txn.compares.iter().map(compared).sum::<usize>();
    for branch in [&txn.success, &txn.failure] {
        let mut written = BTreeSet::new();
        for op in branch {
            let (key, value) = match op {
                Op::Put { key, value } => (key, value.len()),
                Op::Delete { key } | Op::Get { key } => (key, 0),
            };
            if key.is_empty() {
                return Err(StoreError::Invalid { reason: "a key is empty".to_owned() });
            }
            if key.len() > KEY_BYTES_MAX {
                return too_large("length of a key", key.len(), KEY_BYTES_MAX);
            }
            if !matches!(op, Op::Get { .. }) && !written.insert(key) {
                return Err(StoreError::Invalid { reason: format!("the key {key:?} is written twice") });
            }
            bytes += key.len() + value;
        }
    }
    match bytes > TXN_BYTES_MAX {
        true => too_large("number of bytes", bytes, TXN_BYTES_MAX),
        false => Ok(bytes),
    }
}
