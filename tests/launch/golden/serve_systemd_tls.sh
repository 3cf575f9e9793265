mkdir -p /etc/sysusers.d
cat > /etc/sysusers.d/lsm-safe.conf <<'END'
u lsm-safe -
END
systemd-sysusers /etc/sysusers.d/lsm-safe.conf
install -D --owner=lsm-safe --group=lsm-safe --mode=0400 k/keys.json /etc/lsm-serve/safe/keys/keys.json
install -D --owner=lsm-safe --group=lsm-safe --mode=0400 cert.pem /etc/lsm-serve/safe/tls/tls.crt
install -D --owner=lsm-safe --group=lsm-safe --mode=0400 key.pem /etc/lsm-serve/safe/tls/tls.key
mkdir -p /etc/systemd/system
cat > /etc/systemd/system/safe.service <<'END'
[Unit]
Description=lsm: models over HTTP
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/opt/lsm/bin/python -m launch.serve digits=/srv/exports/digits "Odd.one=/srv/exports/it's $$(HOME) 50%%" --host=0.0.0.0 --port=8443 --keys=/etc/lsm-serve/safe/keys/keys.json --tls_cert=/etc/lsm-serve/safe/tls/tls.crt --tls_key=/etc/lsm-serve/safe/tls/tls.key
ExecStartPost=/bin/sh -c "for i in $$(seq 120); do /opt/lsm/bin/python -c \"$$1\" 2>/dev/null && exit; sleep 1; done; exit 1" wait "import ssl, urllib.request; c = ssl.create_default_context(); c.check_hostname, c.verify_mode = False, ssl.CERT_NONE; urllib.request.urlopen('https://127.0.0.1:8443/v2/health/ready', timeout=5, context=c)"
TimeoutStartSec=180
TimeoutStopSec=45
Restart=on-failure
RestartSec=2
User=lsm-safe
Environment=HOME=/tmp PYTHONUNBUFFERED=1
CPUQuota=400%
MemoryMax=4G
TasksMax=512
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=read-only
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077

[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now safe.service
