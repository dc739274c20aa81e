"""Training of the networks that ship with the package; nothing else imports this room.

python -m s2flow.training autoencoder micro          the autoencoder of the embedded backbone
python -m s2flow.training flow micro --state DIR     its flow and text encoder
python -m s2flow.training oracle micro               the oracle that reads clips of its world
"""
