"""Every setting, once, from the environment. `docs/reference/settings.md` describes them."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key
from django.utils.csp import CSP

BASE_DIR = Path(__file__).resolve().parent.parent


def _env_bool(name: str) -> bool:
    return os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}


def _env_list(name: str) -> list[str]:
    return [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]


def _env_int(name: str, default: int, *, highest: int) -> int:
    value = os.environ.get(name) or str(default)
    if not (value.isdecimal() and 1 <= int(value) <= highest):
        raise ImproperlyConfigured(
            f"{name} is {value!r}. Set it to a whole number from 1 to {highest}, or unset it."
        )
    return int(value)


def _env_limit(name: str) -> int | None:
    return _env_int(name, 1, highest=10**15) if os.environ.get(name) else None


DATA_DIR = Path(os.environ.get("FLEET_DATA_DIR") or BASE_DIR / "var").resolve()
DATA_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)


def _secret_key() -> str:
    """The site's key, made once and kept readable by its owner alone."""
    if key := os.environ.get("FLEET_SECRET_KEY"):
        return key
    path = DATA_DIR / "secret_key"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(handle, "w") as file:
        key = get_random_secret_key()
        file.write(key)
    return key


SECRET_KEY = _secret_key()
DEBUG = _env_bool("FLEET_DEBUG")

HOST = os.environ.get("HOST", "127.0.0.1")
PORT = _env_int("PORT", 8000, highest=65_535)
ALLOWED_HOSTS = [*{"localhost", "127.0.0.1", "[::1]", HOST}, *_env_list("FLEET_ALLOWED_HOSTS")]
CSRF_TRUSTED_ORIGINS = _env_list("FLEET_TRUSTED_ORIGINS")
# Full origins: Channels' host validator ignores ports, so another local server could open a socket.
SOCKET_ORIGINS = [
    *{f"http://{host}:{PORT}" for host in ALLOWED_HOSTS},
    *{f"{scheme}://{host}" for scheme in ("http", "https") for host in ALLOWED_HOSTS},
    *CSRF_TRUSTED_ORIGINS,
]

INSTALLED_APPS = [
    "daphne",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "channels",
    "django_htmx",
    "checkpoints_app",
    "workflows",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "fleet_site.urls"
ASGI_APPLICATION = "fleet_site.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.csp",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]


def _database() -> dict[str, object]:
    url = os.environ.get("FLEET_DATABASE_URL", "")
    if not url:
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DATA_DIR / "fleet.sqlite3",
            # IMMEDIATE and a timeout: with Django's defaults two writing processes meet
            # "database is locked" within seconds.
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
            # A file, because the runner and the live server read from other threads and processes.
            "TEST": {"NAME": DATA_DIR / "test.sqlite3"},
        }
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured(
            f"FLEET_DATABASE_URL has the scheme {parts.scheme!r}. "
            "Use postgres://USER:PASSWORD@HOST:PORT/NAME, or leave it unset for SQLite."
        )
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "CONN_HEALTH_CHECKS": True,
    }


DATABASES = {"default": _database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"

SECURE_SSL_REDIRECT = _env_bool("FLEET_HTTPS")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT
SECURE_HSTS_SECONDS = 31_536_000 if SECURE_SSL_REDIRECT else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SECURE_SSL_REDIRECT else None
SESSION_COOKIE_HTTPONLY = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SECURE_CSP = {
    "default-src": [CSP.SELF],
    "script-src": [CSP.SELF, CSP.NONCE],
    "style-src": [CSP.SELF],
    "img-src": [CSP.SELF, "data:"],
    "connect-src": [CSP.SELF],
    "object-src": [CSP.NONE],
    "base-uri": [CSP.NONE],
    "frame-ancestors": [CSP.NONE],
    "form-action": [CSP.SELF],
}

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
STATIC_ROOT.mkdir(exist_ok=True)  # WhiteNoise warns when there is none yet
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
WHITENOISE_ALLOW_ALL_ORIGINS = False

# The team file, and what may be attached to a task.
TEAM_FILE = Path(os.environ.get("FLEET_TEAM_FILE") or BASE_DIR / "workflow.yaml")
ATTACHMENT_DIR = DATA_DIR / "attachments"
ATTACHMENT_MAX_BYTES = 50 * 1024 * 1024
ATTACHMENT_MAX_COUNT = 10
DATA_UPLOAD_MAX_MEMORY_SIZE = 5 * 1024 * 1024

# Where the state of checkpoints lies, for the types of storage that lie somewhere.
CHECKPOINT_LOCATIONS = {
    "file": DATA_DIR / "checkpoints",
    "redis": os.environ.get("FLEET_REDIS_URL", ""),
    "cosmos": os.environ.get("FLEET_COSMOS_CONNECTION", ""),
}

# Whether saves index their messages for the full-text search.
CHECKPOINT_SEARCH_INDEX = not _env_bool("FLEET_SEARCH_INDEX_OFF")

# What `retention.clean_up` lets go of, beside the team file's `cleanup_after_days`.
CHECKPOINT_RETENTION = {
    "max_age_days": _env_limit("FLEET_KEEP_DAYS"),
    "max_count": _env_limit("FLEET_KEEP_PER_RUN"),
    "max_total_bytes": _env_limit("FLEET_KEEP_BYTES"),
}
# Whose imported checkpoints may be run here: NAME:HEX of the keys of other sites.
FLEET_TRUSTED_BUNDLE_KEYS = _env_list("FLEET_TRUSTED_BUNDLE_KEYS")

# How long a silent worker keeps its runs, and how often it says that it is alive.
LEASE_SECONDS = 30
HEARTBEAT_SECONDS = 5
EMBEDDED_CONCURRENCY = _env_int("FLEET_CONCURRENCY", 4, highest=64)
LOGIN_LINK_HOURS = 24

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("FLEET_LOG_LEVEL", "WARNING")},
}
