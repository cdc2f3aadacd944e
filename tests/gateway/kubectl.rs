//! With the real kubectl, where there is one.
