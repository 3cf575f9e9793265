mkdir -p /etc/sysusers.d
cat > /etc/sysusers.d/lsm-digits.conf <<'END'
u lsm-digits -
END
systemd-sysusers /etc/sysusers.d/lsm-digits.conf
install -D --owner=lsm-digits --group=lsm-digits --mode=0400 keys.json /etc/lsm-serve/digits/keys/keys.json
mkdir -p /etc/systemd/system
cat > /etc/systemd/system/digits.service <<'END'
[Unit]
Description=lsm: models over HTTP
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/opt/lsm/bin/python -m launch.serve digits=/srv/exports/digits "Odd.one=/srv/exports/it's $$(HOME) 50%%" --keys=/etc/lsm-serve/digits/keys/keys.json --batch_rows=64
ExecStartPost=/bin/sh -c "for i in $$(seq 120); do /opt/lsm/bin/python -c \"$$1\" 2>/dev/null && exit; sleep 1; done; exit 1" wait "import ssl, urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=5)"
TimeoutStartSec=180
TimeoutStopSec=45
Restart=on-failure
RestartSec=2
User=lsm-digits
Environment=HOME=/tmp PYTHONUNBUFFERED=1
CPUQuota=200%
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
systemctl enable --now digits.service
