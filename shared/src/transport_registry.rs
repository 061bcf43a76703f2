//! The transports that a program knows, found by the scheme of a URL.

use std::sync::Arc;

use crate::{ConnectOptions, Finding, FleetRole, Lane, Transport, TransportDriver, TransportError};

/// The kinds of transport that a program knows. Built at start, then shared.
///
/// A URL is never shown in an error, since it may contain a password.
#[derive(Clone, Debug, Default)]
pub struct TransportRegistry {
    drivers: Vec<Arc<dyn TransportDriver>>,
}

impl TransportRegistry {
    /// Adds a kind of transport, which takes its schemes from now on.
    ///
    /// # Errors
    /// If one of its schemes is registered already or is none. The registry is then unchanged.
    pub fn register(&mut self, driver: impl TransportDriver) -> Result<(), RegisterDriverError> {
        let schemes = driver.schemes();
        for (place, scheme) in schemes.iter().enumerate() {
            if !is_scheme(scheme) || scheme.contains(|char: char| char.is_ascii_uppercase()) {
                return Err(RegisterDriverError::InvalidScheme(scheme));
            }
            if self.find(scheme).is_some() || schemes[..place].contains(scheme) {
                return Err(RegisterDriverError::DuplicateScheme(scheme));
            }
        }
        self.drivers.push(Arc::new(driver));
        Ok(())
    }

    /// Returns the driver that takes the URL.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] if the URL has no scheme, or no driver takes it. The hint shows
    /// the URLs of all drivers.
    pub fn driver(&self, url: &str) -> Result<&dyn TransportDriver, TransportError> {
        let problem = match url.split_once("://") {
            Some((scheme, _)) if is_scheme(scheme) => match self.find(scheme) {
                Some(driver) => return Ok(driver),
                None => format!("no transport for {scheme}://"),
            },
            _ => "the broker's URL has no scheme".into(),
        };
        Err(TransportError::Invalid(format!("{problem} (hint: expected {})", self.url_forms())))
    }

    /// Checks a URL, without the credentials beside it and without connecting.
    ///
    /// # Errors
    /// [`TransportError::Invalid`] says what is wrong, without the password.
    pub fn check_url(&self, url: &str) -> Result<(), TransportError> {
        self.driver(url)?.check_url(url)
    }

    /// Connects to the broker at the URL of the options; see [`TransportDriver::connect`].
    ///
    /// # Errors
    /// [`TransportError::Invalid`] if no driver takes the URL, and the errors of its driver.
    pub async fn connect(&self, options: &ConnectOptions) -> Result<Arc<dyn Transport>, TransportError> {
        self.driver(&options.url)?.connect(options).await
    }

    /// Examines the broker at the URL of the options, and a lane on it; see
    /// [`TransportDriver::diagnose`].
    ///
    /// # Errors
    /// [`TransportError::Invalid`] if no driver takes the URL or the credentials. An unreachable
    /// broker is a finding.
    pub async fn diagnose(
        &self,
        options: &ConnectOptions,
        lane: &Lane,
        role: Option<FleetRole>,
    ) -> Result<Vec<Finding>, TransportError> {
        self.driver(&options.url)?.diagnose(options, lane, role).await
    }

    /// Returns the forms of the URLs of all drivers, for hints and help.
    #[must_use]
    pub fn url_forms(&self) -> String {
        if self.drivers.is_empty() {
            return "none, since no transport is registered".into();
        }
        let forms: Vec<_> = self.drivers.iter().map(|driver| driver.url_form()).collect();
        forms.join("; ")
    }

    /// Returns the directives of all drivers for the default log filter.
    pub fn log_directives(&self) -> impl Iterator<Item = &'static str> {
        self.drivers.iter().flat_map(|driver| driver.log_directives()).copied()
    }

    fn find(&self, scheme: &str) -> Option<&dyn TransportDriver> {
        self.drivers.iter().find(|driver| driver.schemes().contains(&scheme)).map(|driver| &**driver)
    }
}

/// True for the scheme of a URL. Errors may show it: it is no part of a password.
fn is_scheme(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic())
        && chars.all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
}

/// The error for a transport that cannot be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterDriverError {
    /// Another driver takes the scheme already, or this one lists it twice.
    #[error("two transports take URLs of {0}:// (hint: register one of them, or give one another scheme)")]
    DuplicateScheme(&'static str),
    /// The text is no scheme of a URL.
    #[error("{0:?} is no scheme of a URL (hint: expected a-z, then a-z, 0-9, +, - and ., such as redis)")]
    InvalidScheme(&'static str),
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::{Severity, memory::MemoryTransport};

    /// A driver of two schemes, whose broker is unreachable at one URL.
    #[derive(Debug)]
    struct TestDriver(&'static [&'static str]);

    #[async_trait]
    impl TransportDriver for TestDriver {
        fn schemes(&self) -> &'static [&'static str] {
            self.0
        }
        fn url_form(&self) -> &'static str {
            "one://HOST, or two://…"
        }
        fn log_directives(&self) -> &'static [&'static str] {
            &["client=off"]
        }
        fn check_url(&self, url: &str) -> Result<(), TransportError> {
            if url.ends_with("//") { Err(TransportError::Invalid("no host".into())) } else { Ok(()) }
        }
        async fn connect(&self, options: &ConnectOptions) -> Result<Arc<dyn Transport>, TransportError> {
            self.check_url(&options.url)?;
            if options.url.ends_with("//away") {
                let (transport, reason) = ("one".into(), "refused".into());
                return Err(TransportError::Disconnected { transport, reason });
            }
            Ok(MemoryTransport::new())
        }
    }

    fn registry(schemes: &'static [&'static str]) -> Result<TransportRegistry, RegisterDriverError> {
        let mut registry = TransportRegistry::default();
        registry.register(TestDriver(&["one", "two"]))?;
        registry.register(TestDriver(schemes))?;
        Ok(registry)
    }

    #[test]
    fn scheme_is_registered_once() {
        assert!(registry(&["three", "redis+sentinel"]).is_ok());
        for twice in [&["two"] as &'static [_], &["four", "four"]] {
            let error = registry(twice).unwrap_err().to_string();
            assert!(error.starts_with(&format!("two transports take URLs of {}://", twice[0])), "{error}");
        }
        for none in ["", "a b", "1st", "Upper", "a://"] {
            let mut registry = TransportRegistry::default();
            let error = registry.register(TestDriver(vec![none].leak())).unwrap_err();
            assert!(matches!(error, RegisterDriverError::InvalidScheme(_)), "{error}");
        }
    }

    /// A password is not shown, wherever it stands.
    #[test]
    fn unknown_scheme_shows_all_forms() {
        let registry = registry(&["three"]).unwrap();
        for (url, problem) in [
            ("four://me:secret@host", "no transport for four://"),
            ("ONE://host", "no transport for ONE://"),
            ("me:secret@host", "the broker's URL has no scheme"),
            ("one:me:secret://host", "the broker's URL has no scheme"),
            ("", "the broker's URL has no scheme"),
        ] {
            let error = registry.check_url(url).unwrap_err().to_string();
            let hint = "(hint: expected one://HOST, or two://…; one://HOST, or two://…)";
            assert_eq!(error, format!("{problem} {hint}"));
        }
        let none = TransportRegistry::default().check_url("one://host").unwrap_err().to_string();
        assert!(none.contains("no transport is registered"), "{none}");
    }

    #[tokio::test]
    async fn url_is_given_to_its_driver() {
        let registry = registry(&["three"]).unwrap();
        assert!(registry.check_url("two://host").is_ok());
        assert_eq!(registry.check_url("three://").unwrap_err().to_string(), "no host");
        let options = ConnectOptions::new("two://host").name("test");
        assert_eq!(registry.connect(&options).await.unwrap().to_string(), "memory");
        assert_eq!(registry.log_directives().collect::<Vec<_>>(), ["client=off", "client=off"]);
    }

    #[tokio::test]
    async fn default_doctor_only_connects() {
        let registry = registry(&["three"]).unwrap();
        let diagnose = async |url: &str| {
            let options = ConnectOptions::new(url);
            registry.diagnose(&options, &Lane::default(), Some(FleetRole::Sink)).await
        };
        assert_eq!(diagnose("one://host").await.unwrap(), [Finding::ok("connection", "memory")]);
        let away = diagnose("one://away").await.unwrap().remove(0);
        assert!(away.verdict == Severity::Problem && away.found.contains("refused"), "{away:?}");
        assert!(matches!(diagnose("one://").await, Err(TransportError::Invalid(_))));
    }

    #[test]
    fn options_hide_the_url() {
        let credentials = crate::Credentials { password: Some("sesame".into()), ..Default::default() };
        let options = ConnectOptions::new("one://me:secret@host").credentials(credentials);
        let shown = format!("{options:?}");
        assert!(!shown.contains("secret") && !shown.contains("sesame"), "{shown}");
    }
}
