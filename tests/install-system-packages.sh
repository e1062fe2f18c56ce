#!/bin/sh
# Installs what the tests start for real and pip cannot bring. Debian and Ubuntu; elsewhere it names what is missing.
set -eu

has() {
  case "$1" in
    postgresql) command -v initdb || ls /usr/lib/postgresql/*/bin/initdb ;;
    prometheus-alertmanager) command -v prometheus-alertmanager || command -v alertmanager ;;
    kubernetes-client) command -v kubectl ;;
    rsyslog) command -v rsyslogd ;;
    rsyslog-elasticsearch) ls /usr/lib/*/rsyslog/omelasticsearch.so ;;
    nodejs) command -v node ;;
    chromium) command -v chromium || command -v google-chrome ;;
    *) command -v "$1" ;;
  esac >/dev/null 2>&1
}

missing() {
  for package in postgresql redis-server prometheus-alertmanager chromium kubernetes-client nodejs npm prometheus rsyslog rsyslog-elasticsearch; do
    has "$package" || printf '%s ' "$package"
  done
}

wanted=$(missing)
[ -n "$wanted" ] || exit 0
if command -v apt-get >/dev/null; then
  echo "Installing for the tests: $wanted"
  apt-get update -qq
  for package in $wanted; do  # one by one: some builds of nodejs bring npm, and refuse the package of that name
    has "$package" || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null || true
  done
fi
wanted=$(missing)
[ -z "$wanted" ] || { echo "Missing: $wanted-- install them; the tests start their own servers and a browser"; exit 1; }
