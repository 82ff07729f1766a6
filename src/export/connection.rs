//! Connections that were not made: why, in words for people, and what to check.

use std::{error::Error, fmt, io};

use rustls::{AlertDescription, CertificateError};

use super::address::RefusedAddress;

/// Why there is no connection to a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    Refused,
    UnknownHost,
    NoAnswer,
    NotTls,
    UntrustedCertificate,
    SelfSignedCertificate,
    ExpiredCertificate,
    FutureCertificate,
    CertificateOfAnotherHost,
    InvalidCertificate,
    /// A version or a cipher that we do not accept, or the server does not.
    NoCommonTls,
    HandshakeRefused,
    /// The server asks for a client certificate, and got none.
    NoClientCertificate,
    ClientCertificateRefused,
    /// The proxy asks for user and password (407).
    ProxyAuthorization,
}

impl Problem {
    /// What an error of a connection means; `None` where it is none of the usual ones.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        causes(error).find_map(|cause| {
            if let Some(error) = cause.downcast_ref::<rustls::Error>() {
                return Self::of_tls(error);
            }
            let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            match (kind, cause.to_string().as_str()) {
                (Some(io::ErrorKind::ConnectionRefused), _) => Some(Self::Refused),
                (Some(io::ErrorKind::TimedOut), _) => Some(Self::NoAnswer),
                // Neither of these two has a type that can be asked for.
                (Some(io::ErrorKind::UnexpectedEof), "tls handshake eof") => Some(Self::NotTls),
                (_, text) if text.starts_with("dns error") => Some(Self::UnknownHost),
                (_, text) if text.contains("proxy authorization required") => Some(Self::ProxyAuthorization),
                _ => None,
            }
        })
    }

    fn of_tls(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidMessage(_) => Some(Self::NotTls),
            rustls::Error::PeerIncompatible(_) => Some(Self::NoCommonTls),
            rustls::Error::AlertReceived(alert) => Self::of_alert(*alert),
            rustls::Error::InvalidCertificate(certificate) => Some(Self::of_certificate(certificate)),
            _ => None,
        }
    }

    /// What the server says about our part of the handshake.
    fn of_alert(alert: AlertDescription) -> Option<Self> {
        use AlertDescription as A;
        match alert {
            A::ProtocolVersion => Some(Self::NoCommonTls),
            // In TLS 1.2 this is also what many say to a client that shows no certificate.
            A::HandshakeFailure | A::InsufficientSecurity => Some(Self::HandshakeRefused),
            A::CertificateRequired => Some(Self::NoClientCertificate),
            A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError => Some(Self::ClientCertificateRefused),
            _ => None,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::UntrustedCertificate,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::ExpiredCertificate,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::FutureCertificate,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::CertificateOfAnotherHost
            }
            // The library that checks certificates has a name for this, rustls has none.
            CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                Self::SelfSignedCertificate
            }
            _ => Self::InvalidCertificate,
        }
    }

    pub fn is_of_tls(self) -> bool {
        match self {
            Self::Refused | Self::UnknownHost | Self::NoAnswer | Self::ProxyAuthorization => false,
            Self::NoCommonTls
            | Self::HandshakeRefused
            | Self::NoClientCertificate
            | Self::ClientCertificateRefused
            | Self::NotTls
            | Self::UntrustedCertificate
            | Self::SelfSignedCertificate
            | Self::ExpiredCertificate
            | Self::FutureCertificate
            | Self::CertificateOfAnotherHost
            | Self::InvalidCertificate => true,
        }
    }

    /// What a server says of our certificate, or of its absence.
    pub fn is_of_client_certificate(self) -> bool {
        matches!(self, Self::NoClientCertificate | Self::ClientCertificateRefused)
    }

    /// Whether somebody has to change something first, so that no other attempt helps.
    pub fn is_final(self) -> bool {
        self == Self::ProxyAuthorization || (self.is_of_tls() && self != Self::NotTls)
    }

    pub fn way_out(self) -> &'static str {
        match self {
            Self::Refused => "check that the server is up and reachable from this host",
            Self::UnknownHost => "check the address and the DNS of this host",
            Self::NoAnswer => "check the address, and the firewall or proxy between this host and the server",
            Self::NotTls => "check whether it is an http:// address",
            Self::UntrustedCertificate | Self::SelfSignedCertificate => {
                "install its CA on this host, or name a file that holds it in server.tls.ca_file"
            }
            Self::ExpiredCertificate | Self::FutureCertificate => {
                "have the certificate renewed, and check the clock of this host"
            }
            Self::CertificateOfAnotherHost => "use the host name that the certificate is for",
            Self::InvalidCertificate => "have the certificate replaced",
            Self::NoCommonTls => "have a newer TLS enabled there, or lower server.tls.min_version",
            Self::HandshakeRefused => {
                "check which versions of TLS it has (server.tls.min_version), and whether it asks for a client \
                 certificate (server.tls.client_certificate_file)"
            }
            Self::NoClientCertificate => {
                "set server.tls.client_certificate_file and client_key_file, and check that the server is the one that \
                 may see them"
            }
            Self::ClientCertificateRefused => {
                "check with its administrator that the certificate of server.tls.client_certificate_file is registered \
                 and has not expired"
            }
            Self::ProxyAuthorization => "put user and password into the URL of server.proxy",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Refused => "connection refused",
            Self::UnknownHost => "the host name cannot be resolved",
            Self::NoAnswer => "no answer",
            Self::NotTls => "it does not speak TLS",
            Self::UntrustedCertificate => "its certificate is not trusted (unknown issuer)",
            Self::SelfSignedCertificate => "its certificate is not trusted (self-signed)",
            Self::ExpiredCertificate => "its certificate has expired",
            Self::FutureCertificate => "its certificate is not valid yet",
            Self::CertificateOfAnotherHost => "its certificate is for another host name",
            Self::InvalidCertificate => "its certificate is not valid",
            Self::NoCommonTls => "it has no version of TLS in common with us",
            Self::HandshakeRefused => "it refuses our TLS handshake",
            Self::NoClientCertificate => "it asks for a client certificate",
            Self::ClientCertificateRefused => "it does not accept our client certificate",
            Self::ProxyAuthorization => "the proxy asks for a user and a password",
        })
    }
}

/// The address because of which a request was not sent.
pub fn refused_address(error: &(dyn Error + 'static)) -> Option<RefusedAddress> {
    causes(error).find_map(|cause| cause.downcast_ref::<RefusedAddress>()).cloned()
}

/// An error and its causes; an `io::Error` hides the first of them.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        let error: &'a (dyn Error + 'static) = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}
