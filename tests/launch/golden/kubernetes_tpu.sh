kubectl apply --filename=- <<'END'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: digits
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
  failurePolicy:
    maxRestarts: 3
    restartStrategy: BlockingRecreate
    rules:
    - name: preempted
      action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons:
      - PodFailurePolicy
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        parallelism: 4
        completions: 4
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              operator: In
              values:
              - 75
          - action: FailJob
            onPodConditions:
            - type: DisruptionTarget
              status: 'True'
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice
              cloud.google.com/gke-tpu-topology: 4x4
            containers:
            - name: run
              image: r/lsm:1
              command:
              - bash
              - -c
              - |
                # Hands SIGTERM to the run, and waits until it has saved. As this is process 1, nobody else would.
                "$@" &
                run=$!
                trap 'told=1; kill -TERM "$run"' TERM
                while :; do
                  told=
                  wait "$run"
                  status=$?
                  [ -n "$told" ] || break
                done
                if [ "$status" -eq 143 ] || { [ "$status" -eq 0 ] && [ ! -e "$WORKDIR/result.json" ]; }; then
                  exit 75  # interrupted, not finished
                fi
                exit "$status"
              - guard
              - python
              - -m
              - experiments.digits
              - --config=experiments/configs/digits/cnn.py
              - --workdir=/runs/a b
              - --config.data.test=it's "$$(HOME) 50 %"
              env:
              - name: PYTHONUNBUFFERED
                value: '1'
              - name: WORKDIR
                value: /runs/a b
              - name: LSM_COORDINATOR
                value: auto
              resources:
                requests:
                  google.com/tpu: 4
                limits:
                  google.com/tpu: 4
              volumeMounts:
              - name: runs
                mountPath: /runs
              - name: memory
                mountPath: /dev/shm
            volumes:
            - name: runs
              persistentVolumeClaim:
                claimName: runs
            - name: memory
              emptyDir:
                medium: Memory
END
