"""Recomputes the certificate of an exact file from the file alone, sharing nothing with what wrote it."""

from dalif_deploy.certificate.check import CertificateCheck, CheckedLayer, check_certificate

__all__ = ["CertificateCheck", "CheckedLayer", "check_certificate"]
