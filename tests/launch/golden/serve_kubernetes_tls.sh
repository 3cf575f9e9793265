kubectl create secret generic safe-keys --from-file=keys.json=k/keys.json
kubectl create secret tls safe-tls --cert=cert.pem --key=key.pem
kubectl apply --filename=- <<'END'
apiVersion: apps/v1
kind: Deployment
metadata:
  name: safe
  labels:
    app.kubernetes.io/name: safe
spec:
  replicas: 1
  selector:
    matchLabels:
      app.kubernetes.io/name: safe
  template:
    metadata:
      labels:
        app.kubernetes.io/name: safe
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
        image: lsm-serve
        args:
        - digits=/models/exports/digits
        - Odd.one=/models/exports/it's $$(HOME) 50%
        - --host=0.0.0.0
        - --keys=/keys/keys.json
        - --tls_cert=/tls/tls.crt
        - --tls_key=/tls/tls.key
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
            scheme: HTTPS
          periodSeconds: 5
          failureThreshold: 60
        livenessProbe:
          httpGet:
            path: /v2/health/live
            port: http
            scheme: HTTPS
          periodSeconds: 5
          failureThreshold: 6
        readinessProbe:
          httpGet:
            path: /v2/health/ready
            port: http
            scheme: HTTPS
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
        - name: tls
          mountPath: /tls
          readOnly: true
      volumes:
      - name: models
        persistentVolumeClaim:
          claimName: models
          readOnly: true
      - name: keys
        secret:
          secretName: safe-keys
          defaultMode: 288
      - name: tmp
        emptyDir:
          sizeLimit: 1Gi
      - name: tls
        secret:
          secretName: safe-tls
          defaultMode: 288
---
apiVersion: v1
kind: Service
metadata:
  name: safe
  labels:
    app.kubernetes.io/name: safe
spec:
  type: ClusterIP
  selector:
    app.kubernetes.io/name: safe
  ports:
  - name: http
    port: 8443
    targetPort: http
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: safe
  labels:
    app.kubernetes.io/name: safe
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: safe
  policyTypes:
  - Ingress
  - Egress
  ingress:
  - from:
    - podSelector:
        matchLabels:
          safe-client: 'true'
    ports:
    - protocol: TCP
      port: 8000
  egress: []
END
