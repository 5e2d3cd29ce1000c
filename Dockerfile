# Static binaries, and an image that holds nothing else.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN make build

FROM scratch
COPY --from=build /src/bin/stasis /src/bin/stasis-migrate /src/bin/containerd-shim-stasis-v1 /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/stasis"]
