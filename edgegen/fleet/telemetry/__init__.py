"""What devices report: taken in, kept, exported and in the end thrown away.

schema     the tables, and what stands in them
limits     what a report may say at most
clocks     when something happened, by the server's clock
rows       a report as a row
ingest     a batch from its bytes to the database
retention  how long rows stay; a device's texts can be erased at once
store      rows read again, for exports and metrics
broker     the same ingest over MQTT
otlp       OpenTelemetry, for who has a collector
export     files for other tools
"""
