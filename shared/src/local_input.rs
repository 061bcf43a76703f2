//! The values of a job that stay on the machine that splits it.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{JobError, finite};

/// The largest encoded [`LocalInput`]. A producer writes it with its cursor once a second.
pub const LOCAL_INPUT_MAX_BYTES: usize = 64 << 10;

/// The values that [`Job::local`](crate::Job::local) hands to the producer's cursor, and that
/// [`Job::with_local`](crate::Job::with_local) gets back. They never travel.
///
/// ```
/// # use std::path::PathBuf;
/// use gristmill_shared::{JobError, LocalInput};
///
/// # struct Lines { file: PathBuf }
/// # impl Lines {
/// fn local(&self) -> Result<LocalInput, JobError> {
///     LocalInput::new(&std::path::absolute(&self.file)?)
/// }
///
/// fn with_local(&mut self, local: &LocalInput) -> Result<(), JobError> {
///     self.file = local.get()?;
///     Ok(())
/// }
/// # }
/// # let (lines, mut read) = (Lines { file: "a".into() }, Lines { file: PathBuf::new() });
/// # read.with_local(&lines.local()?)?;
/// # assert!(read.file.is_absolute() && read.file.ends_with("a"));
/// # Ok::<(), JobError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct LocalInput(Option<Box<RawValue>>);

impl LocalInput {
    /// Returns the empty input, for a job whose parameters are all that `split` needs.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Encodes a value, as JSON. Several values go into a tuple or a struct.
    ///
    /// # Errors
    /// If the value does not encode as JSON, contains a float that is not finite, or takes more
    /// than [`LOCAL_INPUT_MAX_BYTES`].
    pub fn new<T: Serialize + ?Sized>(value: &T) -> Result<Self, JobError> {
        let json = serde_json::value::to_raw_value(value)?;
        finite::check("local", value, json.get().as_bytes())?;
        if json.get().len() > LOCAL_INPUT_MAX_BYTES {
            return Err(JobError::new(format_args!(
                "the job's local input takes {} bytes, more than the {LOCAL_INPUT_MAX_BYTES} that a cursor holds \
                 (hint: put it into a file, and state the file's path)",
                json.get().len()
            )));
        }
        Ok(Self(Some(json)))
    }

    /// Decodes the value.
    ///
    /// # Errors
    /// If it does not fit the type, or there is none.
    pub fn get<T: DeserializeOwned>(&self) -> Result<T, JobError> {
        let Some(json) = &self.0 else { return Err(JobError::new("the job has no local input")) };
        serde_json::from_str(json.get())
            .map_err(|error| JobError::new(format_args!("the job's local input does not fit: {error}")))
    }

    pub(crate) fn from_json(json: &RawValue) -> Self {
        Self(Some(json.to_owned()))
    }

    pub(crate) fn into_json(self) -> Option<Box<RawValue>> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_input_is_read_by_its_type() {
        let input = LocalInput::new(&("a/b", 7)).unwrap();
        assert_eq!(input.get::<(String, u32)>().unwrap(), ("a/b".into(), 7));
        assert!(input.get::<u32>().unwrap_err().to_string().contains("does not fit"));
        assert!(LocalInput::none().get::<u32>().unwrap_err().to_string().contains("no local input"));
        assert!(LocalInput::none().into_json().is_none());
    }

    #[test]
    fn oversize_local_input_is_refused() {
        let text = |bytes: usize| LocalInput::new(&"x".repeat(bytes - 2)); // with its quotes
        assert!(text(LOCAL_INPUT_MAX_BYTES).is_ok());
        let error = text(LOCAL_INPUT_MAX_BYTES + 1).unwrap_err().to_string();
        assert!(error.contains("takes 65537 bytes, more than the 65536"), "{error}");
        assert!(LocalInput::new(&f64::NAN).unwrap_err().to_string().contains("local is NaN"));
    }
}
