# The gateway with the flights example. Your own models and features: mount them, and give their configuration:
#   docker run -p 8500:8500 -p 8501:8501 -v $PWD/my:/srv/my headrace serve --config /srv/my/headrace.yaml
# `make image-steps` runs the same steps without Docker.

FROM python:3.12-slim AS build
COPY . /src
RUN sh /src/tools/install_wheel.sh /src /opt/headrace && rm -r /opt/headrace/wheel

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /srv/headrace --no-create-home headrace
COPY --from=build /opt/headrace /opt/headrace
COPY models /srv/headrace/models
COPY examples /srv/headrace/examples
WORKDIR /srv/headrace
USER headrace
# Inside a container loopback reaches nobody. The store is another container.
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HEADRACE_GRPC__LISTEN='["0.0.0.0:8500"]' \
    HEADRACE_HTTP__LISTEN=0.0.0.0:8501 \
    HEADRACE_STORE__URL=redis://redis:6379/0
EXPOSE 8500 8501
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s CMD ["headrace", "health"]
ENTRYPOINT ["headrace"]
CMD ["serve", "--config", "/srv/headrace/examples/flights/headrace.yaml"]
