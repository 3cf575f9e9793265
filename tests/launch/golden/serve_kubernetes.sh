kubectl create secret generic digits-keys --from-file=keys.json=keys.json
kubectl apply --filename=- <<'END'
apiVersion: apps/v1
kind: Deployment
metadata:
  name: digits
  labels:
    app.kubernetes.io/name: digits
spec:
  replicas: 1
  selector:
    matchLabels:
      app.kubernetes.io/name: digits
  template:
    metadata:
      labels:
        app.kubernetes.io/name: digits
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 45
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile:
          type: RuntimeDefault
      containers:
      - name: serve
        image: r/lsm:1
        args:
        - digits=/models/exports/digits
        - Odd.one=/models/exports/it's $$(HOME) 50%
        - --host=0.0.0.0
        - --keys=/keys/keys.json
        - --batch_rows=64
        env:
        - name: HOME
          value: /tmp
        ports:
        - name: http
          containerPort: 8000
        startupProbe:
          httpGet:
            path: /v2/health/ready
            port: http
            scheme: HTTP
          periodSeconds: 5
          failureThreshold: 60
        livenessProbe:
          httpGet:
            path: /v2/health/live
            port: http
            scheme: HTTP
          periodSeconds: 5
          failureThreshold: 6
        readinessProbe:
          httpGet:
            path: /v2/health/ready
            port: http
            scheme: HTTP
          periodSeconds: 5
          failureThreshold: 1
        resources:
          requests:
            cpu: '2'
            memory: 4Gi
          limits:
            cpu: '2'
            memory: 4Gi
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities:
            drop:
            - ALL
        volumeMounts:
        - name: models
          mountPath: /models
          readOnly: true
        - name: keys
          mountPath: /keys
          readOnly: true
        - name: tmp
          mountPath: /tmp
      volumes:
      - name: models
        persistentVolumeClaim:
          claimName: models
          readOnly: true
      - name: keys
        secret:
          secretName: digits-keys
          defaultMode: 288
      - name: tmp
        emptyDir:
          sizeLimit: 1Gi
---
apiVersion: v1
kind: Service
metadata:
  name: digits
  labels:
    app.kubernetes.io/name: digits
spec:
  type: ClusterIP
  selector:
    app.kubernetes.io/name: digits
  ports:
  - name: http
    port: 8000
    targetPort: http
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: digits
  labels:
    app.kubernetes.io/name: digits
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: digits
  policyTypes:
  - Ingress
  - Egress
  ingress:
  - from:
    - podSelector:
        matchLabels:
          digits-client: 'true'
    ports:
    - protocol: TCP
      port: 8000
  egress: []
END
