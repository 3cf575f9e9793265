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
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s CMD ["python", "-c", "import ssl, urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=5)"]
ENTRYPOINT ["python", "-m", "launch.serve"]
END
docker build --tag=lsm-serve --file=Dockerfile.serve .
install -D --owner=10001 --group=10001 --mode=0400 keys.json /etc/lsm-serve/digits/keys/keys.json
docker run --detach --name=digits --restart=on-failure:5 --init --user=10001:10001 --read-only --tmpfs=/tmp:rw,nosuid,nodev,size=1g --cap-drop=ALL --security-opt=no-new-privileges --pids-limit=512 --cpus=2 --memory=4g --stop-timeout=45 --publish=127.0.0.1:8000:8000 --mount=type=bind,source=/etc/lsm-serve/digits/keys,target=/keys,readonly --mount=type=bind,source=/srv/exports/digits,target=/models/digits,readonly '--mount=type=bind,source=/srv/exports/it'"'"'s $(HOME) 50%,target=/models/Odd.one,readonly' lsm-serve digits=/models/digits Odd.one=/models/Odd.one --host=0.0.0.0 --keys=/keys/keys.json --batch_rows=64
