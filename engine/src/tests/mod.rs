//! Random histories against a model that is too simple to be wrong.

mod model;
mod random;
