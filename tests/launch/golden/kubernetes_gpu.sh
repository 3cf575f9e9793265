kubectl apply --filename=- <<'END'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: digits
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
        parallelism: 2
        completions: 2
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
              cloud.google.com/gke-accelerator: nvidia-h100-80gb
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
                value: digits-hosts-0-0.digits:8476
              - name: LSM_PROCESSES
                value: '2'
              - name: LSM_PROCESS
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
              - name: LSM_SECRET
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.labels['batch.kubernetes.io/controller-uid']
              resources:
                requests:
                  nvidia.com/gpu: 8
                limits:
                  nvidia.com/gpu: 8
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
