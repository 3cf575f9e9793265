cat > Dockerfile.serve <<'END'
FROM python:3.12-slim
WORKDIR /lsm
COPY pyproject.toml README.md LICENSE ./
COPY lsm lsm
COPY launch launch
COPY experiments experiments
RUN pip install --no-cache-dir '.[serve,text]'
WORKDIR /
ENV HOME=/tmp PYTHONUNBUFFERED=1
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s CMD ["python", "-c", "import ssl, urllib.request; c = ssl.create_default_context(); c.check_hostname, c.verify_mode = False, ssl.CERT_NONE; urllib.request.urlopen('https://127.0.0.1:8000/v2/health/ready', timeout=5, context=c)"]
ENTRYPOINT ["python", "-m", "launch.serve"]
END
docker build --tag=lsm-serve --file=Dockerfile.serve .
install -D --owner=10001 --group=10001 --mode=0400 k/keys.json /etc/lsm-serve/safe/keys/keys.json
install -D --owner=10001 --group=10001 --mode=0400 cert.pem /etc/lsm-serve/safe/tls/tls.crt
install -D --owner=10001 --group=10001 --mode=0400 key.pem /etc/lsm-serve/safe/tls/tls.key
docker run --detach --name=safe --restart=on-failure:5 --init --user=10001:10001 --read-only --tmpfs=/tmp:rw,nosuid,nodev,size=1g --cap-drop=ALL --security-opt=no-new-privileges --pids-limit=512 --cpus=2 --memory=4g --stop-timeout=45 --publish=0.0.0.0:8443:8000 --mount=type=bind,source=/etc/lsm-serve/safe/keys,target=/keys,readonly --mount=type=bind,source=/srv/exports/digits,target=/models/digits,readonly '--mount=type=bind,source=/srv/exports/it'"'"'s $(HOME) 50%,target=/models/Odd.one,readonly' --mount=type=bind,source=/etc/lsm-serve/safe/tls,target=/tls,readonly lsm-serve digits=/models/digits Odd.one=/models/Odd.one --host=0.0.0.0 --keys=/keys/keys.json --tls_cert=/tls/tls.crt --tls_key=/tls/tls.key
